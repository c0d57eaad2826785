package encryptionconfig

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/stored"
)

const head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n"

const full = head + `resources:
- resources: [secrets, widgets.example.com]
  providers:
  - kms: {apiVersion: v2, name: new, endpoint: "unix:///x.sock", timeout: 3s}
  - aescbc: {keys: [{name: key1, secret: c2VjcmV0}, {name: key2, secret: c2VjcmV0}]}
  - identity: {}
- resources: ["*.apps", deployments.apps]
  providers:
  - kms: {name: old, endpoint: "unix:///y.sock", cachesize: 5}
- resources: [secrets]
  providers:
  - identity: {}
- resources: ["*.", "*.*", nodes, leases.coordination.k8s.io]
  providers:
  - secretbox: {keys: [{name: box, secret: c2VjcmV0}]}
`

func TestWrites(t *testing.T) {
	c, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	for resource, want := range map[string]string{
		"secrets": "kms v2 new", "widgets.example.com": "kms v2 new",
		"deployments.apps": "kms v1 old", "daemonsets.apps": "kms v1 old",
		"configmaps": "secretbox box", "nodes": "secretbox box", "leases.coordination.k8s.io": "secretbox box", "gadgets.example.com": "secretbox box",
	} {
		if got := c.Writes(stored.ParseGroupResource(resource)).String(); got != want {
			t.Errorf("%s is written by %s, want %s", resource, got, want)
		}
	}
	var read []string
	for _, p := range c.For(stored.GroupResource{Resource: "secrets"}).Providers {
		read = append(read, p.String())
	}
	if got, want := strings.Join(read, ", "), "kms v2 new, aescbc key1, aescbc key2, identity, identity"; got != want {
		t.Errorf("secrets are read by %s, want %s", got, want)
	}
	if got := len(c.Rules()); got != 5 {
		t.Errorf("%d rules come to bear, want 5", got)
	}
	only, err := Parse([]byte(head + "resources: [{resources: [secrets], providers: [{identity: {}}, {aesgcm: {keys: [{name: a, secret: x}]}}]}]"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []string{"secrets", "configmaps"} {
		if p := only.Writes(stored.ParseGroupResource(r)); !p.Is(stored.Plain, "") {
			t.Errorf("%s is written by %s", r, p)
		}
	}
	if only.For(stored.GroupResource{Resource: "configmaps"}) != nil {
		t.Error("a rule for what no rule names")
	}
}

func TestParseRefuses(t *testing.T) {
	const secret = "c3VwZXJzZWNyZXQ="
	for name, tt := range map[string]struct{ in, want string }{
		"empty":           {"", "EOF"},
		"other fields":    {"apiVersion: v1\nkind: Secret\ndata: {}", "field data not found"},
		"other kind 2":    {"apiVersion: v1\nkind: Secret\n", `"Secret" of "v1"`},
		"no resources":    {head, "no resources"},
		"no providers":    {head + "resources: [{resources: [secrets]}]", "no providers"},
		"no patterns":     {head + "resources: [{providers: [{identity: {}}]}]", "no resources"},
		"two in one":      {head + "resources: [{resources: [secrets], providers: [{identity: {}, kms: {name: a, endpoint: b}}]}]", "exactly one"},
		"none in one":     {head + "resources: [{resources: [secrets], providers: [{}]}]", "exactly one"},
		"unknown field":   {head + "resources: [{resources: [secrets], providers: [{rot13: {}}]}]", "rot13"},
		"no name":         {head + "resources: [{resources: [secrets], providers: [{kms: {apiVersion: v2, endpoint: b}}]}]", "no name"},
		"colon":           {head + "resources: [{resources: [secrets], providers: [{kms: {apiVersion: v2, name: 'a:b', endpoint: b}}]}]", "colon"},
		"twice":           {head + "resources: [{resources: [secrets], providers: [{kms: {apiVersion: v2, name: a, endpoint: b}}]}, {resources: [pods], providers: [{kms: {apiVersion: v2, name: a, endpoint: b}}]}]", "stands twice"},
		"no keys":         {head + "resources: [{resources: [secrets], providers: [{aescbc: {keys: []}}]}]", "without keys"},
		"a star":          {head + "resources: [{resources: ['*'], providers: [{identity: {}}]}]", `"*"`},
		"star group":      {head + "resources: [{resources: ['secrets.*'], providers: [{identity: {}}]}]", "secrets.*"},
		"upper case":      {head + "resources: [{resources: [Secrets], providers: [{identity: {}}]}]", "Secrets"},
		"two documents":   {full + "---\n" + full, "more than one document"},
		"wrong type":      {head + "resources: [{resources: [secrets], providers: [{kms: {name: a, cachesize: " + secret + "}}]}]", "wrong type"},
		"not YAML":        {"{[", "did not find"},
		"type of a block": {head + "resources: " + secret, "wrong type"},
	} {
		_, err := Parse([]byte(tt.in))
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error shows what may be a key: %v", name, err)
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "enc.yaml")
	_, err := Load(path)
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "no such file") || e.Hint() == "" {
		t.Errorf("a missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("kind: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); !errors.As(err, &e) || !strings.Contains(err.Error(), path) {
		t.Errorf("a wrong file: %v", err)
	}
	if err := os.WriteFile(path, []byte(full), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(head + "resources: [{resources: ['*.*'], providers: [{identity: {}}]}]"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := Parse(in)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Fatalf("an error of several lines: %q", err)
			}
			return
		}
		if len(c.Rules()) == 0 {
			t.Fatal("a configuration without rules is taken")
		}
		for _, r := range c.Rules() {
			if len(r.Providers) == 0 {
				t.Fatalf("rule %q has no provider", r.Pattern)
			}
			g := stored.ParseGroupResource(r.Pattern)
			if g.Resource != "*" && c.For(g) != r {
				t.Fatalf("rule %q does not come to bear", r.Pattern)
			}
		}
	})
}
