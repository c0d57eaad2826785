package doctor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/pkg/keys/awskms"
)

const (
	pod    = "kind: Pod\nspec:\n  containers:\n  - name: sidecar\n    args: [--service-account-issuer=https://sidecar]\n  - name: kube-apiserver\n    command:\n    - kube-apiserver\n"
	issued = "    - --service-account-issuer=https://oidc.example/prod\n    - --service-account-issuer\n    - https://kubernetes.default.svc/\n"
)

func manifest(t *testing.T, data string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kube-apiserver.yaml")
	if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// A token that the served API server issues is warned of; where nobody can tell, one
// that looks like it.
func TestCircle(t *testing.T) {
	prod, none := manifest(t, pod+issued), manifest(t, pod)
	const here, there = "https://oidc.example/prod", "https://oidc.example/other"
	for name, c := range map[string]struct {
		w        awskms.WebIdentity
		manifest string
		level    preflight.Level
		text     string
	}{
		"issuer of the cluster":           {awskms.WebIdentity{File: "/t", Issuer: here}, prod, preflight.Warning, `/t is issued by "https://oidc.example/prod", the cluster that is served: kube-apiserver starts only with this plugin`},
		"an older issuer of it":           {awskms.WebIdentity{File: "/t", Issuer: "https://kubernetes.default.svc"}, prod, preflight.Warning, "the cluster that is served: "},
		"slash at the end":                {awskms.WebIdentity{File: "/t", Issuer: here + "/"}, prod, preflight.Warning, "the cluster that is served: "},
		"another cluster":                 {awskms.WebIdentity{File: "/t", Issuer: there, ServiceAccount: true}, prod, preflight.OK, "which is not the cluster that is served"},
		"another cluster, mounted":        {awskms.WebIdentity{File: "/var/run/secrets/eks.amazonaws.com/serviceaccount/token", Issuer: there}, prod, preflight.OK, "which is not"},
		"issuer of a sidecar":             {awskms.WebIdentity{File: "/t", Issuer: "https://sidecar"}, prod, preflight.OK, "which is not"},
		"no flag, service account":        {awskms.WebIdentity{File: "/t", Issuer: here, ServiceAccount: true}, none, preflight.Warning, "has no kube-apiserver with --service-account-issuer"},
		"no manifest, service account":    {awskms.WebIdentity{File: "/t", Issuer: here, ServiceAccount: true}, "", preflight.Warning, "if that is the cluster that is served (it cannot be told: no --manifest)"},
		"no manifest, mounted":            {awskms.WebIdentity{File: "/var/run/secrets/kubernetes.io/serviceaccount/token", Issuer: here}, "", preflight.Warning, "if that is the cluster"},
		"no manifest, mounted, EKS":       {awskms.WebIdentity{File: "/run/secrets/eks.amazonaws.com/serviceaccount/token", Issuer: here}, "/nonexistent", preflight.Warning, "no such file"},
		"no manifest, path only looks so": {awskms.WebIdentity{File: "/run/secrets/kubernetes.io/../../x", Issuer: here}, "", preflight.Note, "cannot be told"},
		"no manifest, nothing is known":   {awskms.WebIdentity{File: "/t", Issuer: here}, "", preflight.Note, "cannot be told: no --manifest"},
		"an issuer that is long":          {awskms.WebIdentity{File: "/t", Issuer: strings.Repeat("x\n", 5000)}, prod, preflight.OK, `x\nx\n`},
	} {
		r := circle(c.w, c.manifest)
		if r.Level != c.level || !strings.Contains(r.Message, c.text) || len(r.Message) > 1000 || strings.Contains(r.Message, "\n") {
			t.Errorf("%s: %+v, want %s, %q", name, r, c.level, c.text)
		}
		if (r.Level == preflight.Warning) != strings.Contains(r.Remedy, "instance role, or IAM Roles Anywhere") {
			t.Errorf("%s: remedy %q", name, r.Remedy)
		}
	}
}

func TestIssuersOf(t *testing.T) {
	for data, want := range map[string][]string{
		pod + issued:                              {"https://oidc.example/prod", "https://kubernetes.default.svc"},
		pod + "    - --service-account-issuer\n":  nil,
		pod + "    - --service-account-issuer=\n": nil,
		"kind: Pod\n":                             nil,
		"[hunter2":                                nil,
	} {
		got, err := issuersOf(manifest(t, data))
		if !slices.Equal(got, want) || (err == nil) != (want != nil) || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("issuersOf(%q) = %v, %v; want %v", data, got, err, want)
		}
	}
}

// Whatever lies where a static pod should: issuers, or an error of one line.
func FuzzIssuers(f *testing.F) {
	file := filepath.Join(f.TempDir(), "pod.yaml")
	f.Add(pod + issued)
	f.Add(pod + "    args: [--service-account-issuer]\n")
	f.Fuzz(func(t *testing.T, data string) {
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := issuersOf(file); (err == nil) != (len(got) > 0) || err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("issuersOf = %q, %v", got, err)
		}
	})
}
