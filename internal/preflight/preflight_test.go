package preflight_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"kms-plugin.io/internal/preflight"
)

func fixed(name string, r preflight.Result) preflight.Check {
	return preflight.Check{Name: name, Run: func(context.Context) preflight.Result { return r }}
}

func TestRun(t *testing.T) {
	all := []preflight.Check{
		fixed("good", preflight.Pass("all %s", "well")),
		fixed("noted", preflight.Tell("so it is")),
		fixed("unseen", preflight.Skip("no file")),
		{Name: "odd", Subject: "a\nb", Run: func(context.Context) preflight.Result {
			return preflight.Warn("do\nthis", "bell\n\n\a and \x1b[31mred")
		}},
		fixed("bad", preflight.Fail("do that", "it is broken")),
	}
	for name, tc := range map[string]struct {
		checks   []preflight.Check
		o        preflight.Options
		passed   bool
		verdict  string
		problems int
		warnings int
	}{
		"none":           {nil, preflight.Options{}, true, "passed: 0 problems, 0 warnings in 0 checks", 0, 0},
		"all well":       {all[:3], preflight.Options{Strict: true}, true, "passed: 0 problems, 0 warnings in 3 checks", 0, 0},
		"warning":        {all[:4], preflight.Options{}, true, "passed: 0 problems, 1 warning in 4 checks", 0, 1},
		"strict warning": {all[:4], preflight.Options{Strict: true}, false, "NOT PASSED: 0 problems, 1 warning in 4 checks", 0, 1},
		"problem":        {all, preflight.Options{}, false, "NOT PASSED: 1 problem, 1 warning in 5 checks", 1, 1},
		"skipped":        {all, preflight.Options{Skip: []string{"bad", "odd"}}, true, "passed: 0 problems, 0 warnings in 5 checks", 0, 0},
	} {
		r := preflight.Run(t.Context(), tc.checks, tc.o)
		if r.Passed != tc.passed || r.Verdict() != tc.verdict || r.Problems != tc.problems || r.Warnings != tc.warnings {
			t.Errorf("%s: passed %t, %q, %d, %d; want %t, %q, %d, %d", name, r.Passed, r.Verdict(), r.Problems, r.Warnings, tc.passed, tc.verdict, tc.problems, tc.warnings)
		}
	}
	var b strings.Builder
	if err := preflight.Run(t.Context(), all, preflight.Options{Skip: []string{"good"}}).Print(&b); err != nil {
		t.Fatal(err)
	}
	want := `[skipped] good: by --skip
[note]    noted: so it is
[skipped] unseen: no file
[WARNING] odd a b: bell ` + "\uFFFD and \uFFFD" + `[31mred
          hint: do this
[PROBLEM] bad: it is broken
          hint: do that
NOT PASSED: 1 problem, 1 warning in 5 checks
`
	if b.String() != want {
		t.Errorf("Print wrote\n%s, want\n%s", b.String(), want)
	}
}

// Fields are only ever added.
func TestJSON(t *testing.T) {
	r := preflight.Run(t.Context(), []preflight.Check{fixed("bad", preflight.Fail("do that", "it is broken"))}, preflight.Options{Program: "x"})
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{"apiVersion":"kms-plugin.io/preflight/v1","program":"x","at":"`, `"passed":false,"strict":false,"problems":1,"warnings":0,` +
		`"checks":[{"name":"bad","level":"problem","message":"it is broken","remedy":"do that","seconds":0`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("JSON %s lacks %s", data, want)
		}
	}
}

// A run that is stopped says so of what it did not look at.
func TestStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := preflight.Run(ctx, []preflight.Check{fixed("good", preflight.Pass("well"))}, preflight.Options{})
	if r.Passed || r.Checks[0].Message != "stopped before it ran" {
		t.Errorf("a stopped run gives %+v", r)
	}
}
