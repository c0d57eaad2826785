// Package cli is what both programs share at the terminal: one line for an
// error, hints, exit codes, the version. It knows no command.
package cli

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes of both programs.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitUsage  = 2
	ExitFound  = 3 // a check ran and found problems
)

// ErrFound is returned by a check that found what it looks for; what it found
// has been printed.
var ErrFound = errors.New("problems were found")

// usageError is a command line that makes no sense.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// Usage marks an error as one of the command line.
func Usage(err error) error { return usageError{err} }

type hinted struct {
	error
	hint string
}

func (h hinted) Hint() string  { return h.hint }
func (h hinted) Unwrap() error { return h.error }

// WithHint adds what to do about an error: one sentence or command.
func WithHint(err error, hint string) error { return hinted{err, hint} }

// Command finishes a root command: errors and usage are printed by Run.
func Command(root *cobra.Command) *cobra.Command {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.Version = Version()
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(&cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, Run: func(c *cobra.Command, _ []string) {
		fmt.Fprintln(c.OutOrStdout(), root.Name(), Version())
	}})
	return root
}

// ExitCode is the code an error ends with.
func ExitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, ErrFound):
		return ExitFound
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"), strings.Contains(err.Error(), "arg(s), "), strings.HasPrefix(err.Error(), "required flag"):
		return ExitUsage // cobra has no types for these
	}
	return ExitFailed
}

// Print writes `prog: error: text` and then the hints. ErrFound alone prints
// nothing: what was found is on the terminal already.
func Print(w io.Writer, prog string, err error) {
	if err == nil || err == ErrFound {
		return
	}
	fmt.Fprintf(w, "%s: error: %s\n", prog, err)
	var h interface{ Hint() string }
	if errors.As(err, &h) && h.Hint() != "" {
		fmt.Fprintf(w, "hint: %s\n", h.Hint())
	} else if ExitCode(err) == ExitUsage {
		fmt.Fprintf(w, "hint: %s --help\n", prog)
	}
}

// stamp is the version of a reproducible build, set by the linker (build/image) and
// by nothing else: what Go records of the version control depends on the tags that a
// checkout happens to have.
var stamp string

// Version is the version the build recorded, with the revision of the source.
func Version() string {
	if stamp != "" {
		return stamp
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && (v == "(devel)" || v == ""):
			v = "devel-" + s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			v += "+modified"
		}
	}
	return v
}
