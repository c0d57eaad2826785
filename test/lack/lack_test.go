package lack_test

import (
	"fmt"
	"testing"

	"kms-plugin.io/test/lack"
)

// told takes down how a test ended.
type told struct {
	testing.TB
	end string
}

func (t *told) Helper()                   {}
func (t *told) Skipf(f string, a ...any)  { t.ended("skipped: "+f, a...) }
func (t *told) Logf(f string, a ...any)   { t.ended("went on: "+f, a...) }
func (t *told) Fatalf(f string, a ...any) { t.ended("failed: "+f, a...) }

// ended goes on, as no test does: what comes first counts.
func (t *told) ended(f string, a ...any) {
	if t.end == "" {
		t.end = fmt.Sprintf(f, a...)
	}
}

func TestSkip(t *testing.T) {
	for value, want := range map[string]string{
		"":  "skipped: no strace",
		"1": "failed: no strace (TESTS_MUST_RUN is set: this test must run)",
	} {
		t.Setenv(lack.Variable, value)
		got := told{}
		lack.Skip(&got, "no %s", "strace")
		if got.end != want {
			t.Errorf("with %q: %q, want %q", value, got.end, want)
		}
	}
}

func TestLess(t *testing.T) {
	for value, want := range map[string]string{
		"":  "went on: not root",
		"1": "failed: not root (TESTS_MUST_RUN is set: all of this test must run)",
	} {
		t.Setenv(lack.Variable, value)
		got := told{}
		lack.Less(&got, "not %s", "root")
		if got.end != want {
			t.Errorf("with %q: %q, want %q", value, got.end, want)
		}
	}
}
