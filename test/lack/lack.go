// Package lack is for tests that cannot run everywhere: they need root, a pseudoterminal,
// leave to trace, a new kernel. At a desk such a test is skipped. In .ci/run, where
// nobody would see that, it fails.
package lack

import (
	"os"
	"testing"
)

// Variable is set, to anything, where a test that cannot run is a failure.
const Variable = "TESTS_MUST_RUN"

// Skip ends a test that lacks something here. What a test lacks in every run of its
// kind, such as a second suite under fips140=only, is a plain t.Skip with its reason
// in test/skips_test.go.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(Variable) != "" {
		t.Fatalf(format+" ("+Variable+" is set: this test must run)", args...)
	}
	t.Skipf(format, args...)
}

// Less is for a test that goes on and proves less than it could.
func Less(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(Variable) != "" {
		t.Fatalf(format+" ("+Variable+" is set: all of this test must run)", args...)
	}
	t.Logf(format, args...)
}
