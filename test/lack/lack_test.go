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

func TestEnds(t *testing.T) {
	for _, tt := range []struct {
		value string
		call  func(testing.TB, string, ...any)
		want  string
	}{
		{"", lack.Skip, "skipped: no strace"},
		{"1", lack.Skip, "failed: no strace (TESTS_MUST_RUN is set: this test must run)"},
		{"", lack.Less, "went on: no strace"},
		{"1", lack.Less, "failed: no strace (TESTS_MUST_RUN is set: all of this test must run)"},
	} {
		t.Setenv(lack.Variable, tt.value)
		got := told{}
		tt.call(&got, "no %s", "strace")
		if got.end != tt.want {
			t.Errorf("with %q: %q, want %q", tt.value, got.end, tt.want)
		}
	}
}
