package preflight

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
)

var marks = map[Level]string{OK: "[ok]     ", Note: "[note]   ", Skipped: "[skipped]", Warning: "[WARNING]", Problem: "[PROBLEM]"}

// Print writes one line for each check, a second one where there is something to
// do, and the verdict.
func (r *Report) Print(w io.Writer) error {
	var b strings.Builder
	for _, c := range r.Checks {
		name := c.Name
		if c.Subject != "" {
			name += " " + line(c.Subject)
		}
		fmt.Fprintf(&b, "%s %s: %s\n", marks[c.Level], name, line(c.Message))
		if c.Remedy != "" {
			fmt.Fprintf(&b, "          hint: %s\n", line(c.Remedy))
		}
	}
	fmt.Fprintln(&b, r.Verdict())
	_, err := io.WriteString(w, b.String())
	return err
}

// outputs are the values of -o.
var outputs = []string{"text", "json"}

// CheckFlags refuses an -o or --skip that makes no sense.
func CheckFlags(output string, skip, names []string) error {
	if !slices.Contains(outputs, output) {
		return fmt.Errorf("-o %q is neither text nor json", output)
	}
	for _, s := range skip {
		if !slices.Contains(names, s) {
			return fmt.Errorf("--skip %q is none of %s", s, strings.Join(names, ", "))
		}
	}
	return nil
}

// Write writes the report for people or, as json, for programs.
func (r *Report) Write(w io.Writer, output string) error {
	if output != "json" {
		return r.Print(w)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Verdict is the report in a sentence.
func (r *Report) Verdict() string {
	found := fmt.Sprintf("%s, %s in %d checks", count(r.Problems, "problem"), count(r.Warnings, "warning"), len(r.Checks))
	if r.Passed {
		return "passed: " + found
	}
	return "NOT PASSED: " + found
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// line keeps foreign text on one line, and from speaking to the terminal.
func line(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '\uFFFD'
		}
		return r
	}, strings.TrimSpace(s))
}

// HintOf is the remedy that an error carries, or the other one.
func HintOf(err error, other string) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) && h.Hint() != "" {
		return h.Hint()
	}
	return other
}
