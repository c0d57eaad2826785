//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kms-plugin.io/internal/stored"
	"kms-plugin.io/test/controlplane"
)

var pathPattern = regexp.MustCompile(`(?s)gvr\("([^"]*)", "[^"]*", "([^"]*)"\): \{.*?ExpectedEtcdPath:\s+"(/registry/[^"]*)"`)

// Every resource that upstream's own test stores is known by its place.
func TestResourcesOfUpstream(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	cmd.Dir = filepath.Join(controlplane.Root(), "test/tools/controlplane")
	dir, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "test/integration/etcd/data.go"))
	if err != nil {
		t.Fatal(err)
	}
	all := pathPattern.FindAllSubmatch(data, -1)
	if len(all) < 60 {
		t.Fatalf("only %d resources found in upstream's list", len(all))
	}
	for _, m := range all {
		want := stored.GroupResource{Group: string(m[1]), Resource: string(m[2])}
		if want.Group == "events.k8s.io" || want.Group == "extensions" {
			want.Group = "" // stored with the core group
		}
		k := stored.ParseKey(append(m[3], "name"...), "/registry")
		if k.Resource != want || !k.Known {
			t.Errorf("%s at %s is taken for %+v", want, m[3], k)
		}
	}
}
