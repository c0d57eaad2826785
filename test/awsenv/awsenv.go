// Package awsenv takes from a test what the machine has set for AWS: credentials,
// endpoints and files of whoever runs it. It must not know any server.
package awsenv

import (
	"os"
	"strings"
	"testing"
)

// Clear leaves no AWS_* variable but those that name empty files, until the test ends.
func Clear(t testing.TB) {
	t.Helper()
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // for it to come back
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
}
