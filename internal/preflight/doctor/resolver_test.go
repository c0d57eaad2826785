package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/preflight"
)

// What harden.Loses says becomes a warning; a test of package harden has the cases.
func TestResolver(t *testing.T) {
	own := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(own, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]preflight.Level{own: preflight.OK, own + "x": preflight.Skipped, "/etc/passwd": preflight.Warning} {
		if r := resolver(path, nil); r.Level != want {
			t.Errorf("%s: %+v", path, r)
		}
	}
	if r := resolver("/etc/passwd", []string{"/etc"}); r.Level != preflight.OK || !strings.Contains(r.Message, "followed") {
		t.Errorf("with /etc among the readable: %+v", r)
	}
}
