// Package test holds what is checked about the tree as a whole.
package test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func list(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = filepath.Dir(mustAbs(t, "."))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Fields(string(out))
}

func mustAbs(t *testing.T, p string) string {
	t.Helper()
	a, err := filepath.Abs(p)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// What holds plaintext keys links as little as it can.
func TestDaemonDoesNotLink(t *testing.T) {
	bad := map[string]string{
		"k8s.io/client-go":                         "a client of the cluster it protects is a cycle at boot",
		"k8s.io/apiserver":                         "weight, and none of its code belongs near keys",
		"k8s.io/apimachinery":                      "the same",
		"go.etcd.io/":                              "etcd is the API server's business",
		"kms-plugin.io/internal/etcdstore":         "the same",
		"github.com/jedib0t/go-pretty":             "tables are for people, and the daemon talks to none",
		"github.com/schollz/progressbar":           "the same",
		"kms-plugin.io/internal/audit/evidence":    "the log is read back by people, elsewhere",
		"kms-plugin.io/test":                       "fakes never ship",
		"kms-plugin.io/pkg/keys/keystest":          "neither do test suites",
		"net/http/pprof":                           "it would show memory",
		"google.golang.org/grpc/reflection":        "the socket says no more than it must",
		"kms-plugin.io/internal/preflight/cluster": "it reads etcd; the daemon has its doctor",
	}
	for _, dep := range list(t, "-deps", "./cmd/kms-plugin") {
		for prefix, why := range bad {
			if dep == prefix || strings.HasPrefix(dep, strings.TrimSuffix(prefix, "/")+"/") {
				t.Errorf("kms-plugin links %s: %s", dep, why)
			}
		}
	}
}

// Imports point inward, and an SDK has one home.
func TestImportDirections(t *testing.T) {
	const us = "kms-plugin.io/"
	for _, line := range listImports(t) {
		pkg, imports := line[0], line[1:]
		for _, imp := range imports {
			if why := forbidden(strings.TrimPrefix(pkg, us), imp, us); why != "" {
				t.Errorf("%s imports %s: %s", pkg, imp, why)
			}
		}
	}
}

func listImports(t *testing.T) (out [][]string) {
	t.Helper()
	for _, l := range list(t, "-f", `{{.ImportPath}}{{range .Imports}},{{.}}{{end}}`, "./cmd/...", "./internal/...", "./pkg/...") {
		out = append(out, strings.Split(l, ","))
	}
	return out
}

func forbidden(pkg, imp, us string) string {
	own, isOwn := strings.CutPrefix(imp, us)
	std := !strings.Contains(strings.Split(imp, "/")[0], ".")
	provider := pkg == "pkg/keys/awskms" || pkg == "pkg/keys/localfile"
	switch {
	case pkg == "pkg/keys" && !std:
		return "pkg/keys imports the standard library only"
	case pkg == "pkg/plugin" && isOwn && own != "pkg/keys":
		return "pkg/plugin knows pkg/keys alone"
	case provider && isOwn && own != "pkg/keys":
		return "a provider knows pkg/keys alone"
	case pkg == "pkg/keys/regions" && isOwn && own != "pkg/keys":
		return "regions knows no provider"
	case strings.Contains(imp, "/aws-sdk-go-v2") && pkg != "pkg/keys/awskms":
		return "the AWS SDK has one home, pkg/keys/awskms"
	case strings.HasPrefix(imp, "go.etcd.io/bbolt") && pkg != "internal/etcdstore/snapshot":
		return "snapshot files have one home, internal/etcdstore/snapshot"
	case strings.HasPrefix(imp, "go.etcd.io/etcd") && pkg != "internal/etcdstore/live":
		return "the etcd client has one home, internal/etcdstore/live"
	case strings.HasPrefix(pkg, "internal/coverage") && strings.HasPrefix(own, "internal/etcdstore/"):
		return "coverage takes any source, and does not know how etcd is reached"
	case pkg == "internal/stored" && isOwn:
		return "stored is syntax, and knows nobody"
	case strings.HasPrefix(imp, "k8s.io/client-go") && pkg != "internal/kube" && pkg != "internal/canary" && pkg != "internal/rotation":
		return "API servers are reached by internal/kube"
	case strings.HasPrefix(imp, "google.golang.org/grpc") && strings.HasPrefix(pkg, "pkg/keys"):
		return "gRPC is not a matter of keys"
	case isOwn && strings.HasPrefix(own, "cmd/"):
		return "nothing imports a command"
	case isOwn && strings.HasPrefix(own, "internal/") && strings.HasPrefix(pkg, "pkg/"):
		return "pkg must not import internal"
	case strings.Contains(imp, "insecurecleartextkeyset") && pkg != "pkg/keys/localfile":
		return "clear keysets have one home, pkg/keys/localfile"
	}
	return ""
}
