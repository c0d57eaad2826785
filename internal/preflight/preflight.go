// Package preflight runs named checks and reports each with its result, the
// reason, and the remedy. It must not know what any check looks at.
package preflight

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// APIVersion of the JSON form. Fields are only ever added.
const APIVersion = "kms-plugin.io/preflight/v1"

// Level is what a check found.
type Level string

// The levels. Problems fail a report; warnings fail it only under Strict.
const (
	OK      Level = "ok"
	Note    Level = "note"    // nothing to do, worth knowing
	Skipped Level = "skipped" // it could not look, and Message says why
	Warning Level = "warning" // it works, and should be put right
	Problem Level = "problem" // it does not work, or must not be so
)

// Result is what a check found: one line, and what to do about it.
type Result struct {
	Level   Level  `json:"level"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

// Check is one thing that is looked at. Name is one of docs/preflight.md; Subject
// is which of several, such as the name of a key, or "".
type Check struct {
	Name    string
	Subject string
	Run     func(ctx context.Context) Result
	Long    bool // it may take longer than the time for one check
}

// Options of a run.
type Options struct {
	Program string   // that reports
	Skip    []string // names of checks that are not wanted
	Strict  bool     // warnings fail too
}

// Report is what `kmsctl preflight -o json` and `kms-plugin doctor -o json` print
// (docs/preflight.md).
type Report struct {
	APIVersion string    `json:"apiVersion"`
	Program    string    `json:"program"`
	At         time.Time `json:"at"`
	Passed     bool      `json:"passed"`
	Strict     bool      `json:"strict"`
	Problems   int       `json:"problems"`
	Warnings   int       `json:"warnings"`
	Checks     []Outcome `json:"checks"` // in the order they ran
}

// Outcome is one check and its result.
type Outcome struct {
	Name    string `json:"name"`
	Subject string `json:"subject,omitempty"`
	Result
	Seconds float64 `json:"seconds"`
}

// checkTimeout bounds one check: three remote calls with all their attempts.
const checkTimeout = 15 * time.Second

// Run runs all checks, one after the other: later ones may use what earlier ones
// found.
func Run(ctx context.Context, checks []Check, o Options) *Report {
	r := &Report{APIVersion: APIVersion, Program: o.Program, At: time.Now().UTC().Truncate(time.Second), Strict: o.Strict, Checks: []Outcome{}}
	for _, c := range checks {
		begun := time.Now()
		out := Outcome{Name: c.Name, Subject: c.Subject, Result: one(ctx, c, o.Skip)}
		out.Message = strings.Join(strings.Fields(out.Message), " ") // one line, whatever a foreign error holds
		out.Seconds = time.Since(begun).Round(time.Millisecond).Seconds()
		switch out.Level {
		case Problem:
			r.Problems++
		case Warning:
			r.Warnings++
		}
		r.Checks = append(r.Checks, out)
	}
	r.Passed = r.Problems == 0 && (!o.Strict || r.Warnings == 0)
	return r
}

// Found are the problems and warnings, in the order they were found.
func (r *Report) Found() (out []Outcome) {
	for _, c := range r.Checks {
		if c.Level == Problem || c.Level == Warning {
			out = append(out, c)
		}
	}
	return out
}

func one(ctx context.Context, c Check, skip []string) Result {
	for _, s := range skip {
		if s == c.Name {
			return Skip("by --skip")
		}
	}
	if ctx.Err() != nil {
		return Fail("", "stopped before it ran")
	}
	if !c.Long {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, checkTimeout)
		defer cancel()
	}
	return c.Run(ctx)
}

// Pass is a result without a remedy.
func Pass(format string, args ...any) Result { return Result{OK, fmt.Sprintf(format, args...), ""} }

// Tell is a note.
func Tell(format string, args ...any) Result { return Result{Note, fmt.Sprintf(format, args...), ""} }

// Skip is a check that could not look.
func Skip(format string, args ...any) Result {
	return Result{Skipped, fmt.Sprintf(format, args...), ""}
}

// Warn is a warning with its remedy.
func Warn(remedy, format string, args ...any) Result {
	return Result{Warning, fmt.Sprintf(format, args...), remedy}
}

// Fail is a problem with its remedy.
func Fail(remedy, format string, args ...any) Result {
	return Result{Problem, fmt.Sprintf(format, args...), remedy}
}
