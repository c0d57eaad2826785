package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// Every test that these documents lean on is there.
func TestClaimsHaveTheirTests(t *testing.T) {
	root := filepath.Dir(mustAbs(t, "."))
	for _, doc := range []string{"docs/threat-model.md", "docs/hardening.md", "docs/fips.md", "docs/revocation.md", "docs/failure-modes.md", "docs/fuzzing.md", "docs/audit.md"} {
		text, err := os.ReadFile(filepath.Join(root, doc))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)`").FindAllSubmatch(text, -1) {
			grep := exec.Command("grep", "-rqE", "--include=*_test.go", "^func "+string(m[1])+`\(`, root)
			if err := grep.Run(); err != nil {
				t.Errorf("%s leans on %s, which is not there", doc, m[1])
			}
		}
	}
}
