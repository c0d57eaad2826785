package cli_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
)

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want int
	}{
		{"nil", nil, 0},
		{"any", errors.New("x"), 1},
		{"hinted", cli.WithHint(errors.New("x"), "h"), 1},
		{"usage", cli.Usage(errors.New("x")), 2},
		{"wrapped usage", fmt.Errorf("a: %w", cli.Usage(errors.New("x"))), 2},
		{"hinted usage", cli.WithHint(cli.Usage(errors.New("x")), "h"), 2},
		{"found", cli.ErrFound, 3},
		{"wrapped found", fmt.Errorf("a: %w", cli.ErrFound), 3},
		{"hinted found", cli.WithHint(cli.ErrFound, "h"), 3},
		{"text in the middle", errors.New("run: unknown command"), 1},
	} {
		if got := cli.ExitCode(c.err); got != c.want {
			t.Errorf("%s: ExitCode = %d, want %d", c.name, got, c.want)
		}
	}
}

func TestPrint(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"nil", nil, ""},
		{"found alone", cli.ErrFound, ""},
		{"found with more", fmt.Errorf("file %q: %w", "a", cli.ErrFound), "prog: error: file \"a\": problems were found\n"},
		{"plain", errors.New("x"), "prog: error: x\n"},
		{"hint", cli.WithHint(errors.New("x"), "do y"), "prog: error: x\nhint: do y\n"},
		{"empty hint", cli.WithHint(errors.New("x"), ""), "prog: error: x\n"},
		{"hint deep inside", fmt.Errorf("a: %w", cli.WithHint(errors.New("x"), "do y")), "prog: error: a: x\nhint: do y\n"},
		{"usage", cli.Usage(errors.New("x")), "prog: error: x\nhint: prog --help\n"},
		{"usage with a hint", cli.WithHint(cli.Usage(errors.New("x")), "do y"), "prog: error: x\nhint: do y\n"},
	} {
		var out bytes.Buffer
		cli.Print(&out, "prog", c.err)
		if out.String() != c.want {
			t.Errorf("%s: Print wrote %q, want %q", c.name, out.String(), c.want)
		}
	}
}

// The order in which an error is marked must not matter.
func TestUsageKeepsWhatItMarks(t *testing.T) {
	err := cli.Usage(cli.WithHint(fs.ErrNotExist, "do y"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Usage(%v) is no longer that error", fs.ErrNotExist)
	}
	var out bytes.Buffer
	cli.Print(&out, "prog", err)
	if want := "prog: error: file does not exist\nhint: do y\n"; out.String() != want {
		t.Errorf("Print wrote %q, want %q", out.String(), want)
	}
}

func TestWithHintKeepsTheError(t *testing.T) {
	err := cli.WithHint(fs.ErrNotExist, "h")
	var h interface{ Hint() string }
	if !errors.Is(err, fs.ErrNotExist) || err.Error() != fs.ErrNotExist.Error() || !errors.As(err, &h) || h.Hint() != "h" {
		t.Errorf("WithHint = %v", err)
	}
}

// tool is a root command with one of each kind of argument check.
func tool(args ...string) (stdout, stderr string, err error) {
	root := cli.Command(&cobra.Command{Use: "prog", Short: "s", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }})
	check := &cobra.Command{Use: "check FILE", Short: "s", Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error { return errors.New("run: " + args[0]) }}
	check.Flags().Int("n", 0, "a number")
	need := &cobra.Command{Use: "need", Short: "s", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return nil }}
	need.Flags().String("must", "", "x")
	_ = need.MarkFlagRequired("must")
	root.AddCommand(check, need)
	var out, errs bytes.Buffer
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	err = root.Execute()
	return out.String(), errs.String(), err
}

func TestCommand(t *testing.T) {
	for _, c := range []struct {
		args   string
		code   int
		stdout string
		err    string
	}{
		{"", 0, "Usage:", ""},
		{"--help", 0, "Usage:", ""},
		{"version", 0, "prog " + cli.Version() + "\n", ""},
		{"--version", 0, "prog " + cli.Version() + "\n", ""},
		{"version x", 2, "", "unknown command"},
		{"bogus", 2, "", "unknown command"},
		{"--bogus", 2, "", "unknown flag"},
		{"-z", 2, "", "unknown shorthand flag"},
		{"check", 2, "", "accepts 1 arg(s), received 0"},
		{"check a b", 2, "", "accepts 1 arg(s), received 2"},
		{"check --n x a", 2, "", "invalid argument"},
		{"check --n", 2, "", "flag needs an argument"},
		{"check a", 1, "", "run: a"},
		{"need", 2, "", `required flag(s) "must" not set`},
		{"need --must x", 0, "", ""},
	} {
		out, errs, err := tool(strings.Fields(c.args)...)
		if got := cli.ExitCode(err); got != c.code {
			t.Errorf("%q: exit code %d (%v), want %d", c.args, got, err, c.code)
		}
		if !strings.Contains(out, c.stdout) || (c.stdout == "" && out != "") {
			t.Errorf("%q wrote %q, want %q", c.args, out, c.stdout)
		}
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%q = %v, want %q", c.args, err, c.err)
		}
		if errs != "" {
			t.Errorf("%q wrote %q to stderr: Print does that", c.args, errs)
		}
	}
}

func TestVersion(t *testing.T) {
	if v := cli.Version(); v == "" || strings.ContainsAny(v, " \n") {
		t.Errorf("Version = %q, want one word", v)
	}
}
