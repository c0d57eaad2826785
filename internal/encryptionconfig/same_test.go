package encryptionconfig

import (
	"strings"
	"testing"
)

func TestSame(t *testing.T) {
	const text = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets, events]
  providers: [{kms: {apiVersion: v2, name: ours, endpoint: "unix:///run/a"}}, {identity: {}}]
`
	parse := func(s string) *Config {
		c, err := Parse([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := parse(text)
	if want := "sha256:"; !strings.HasPrefix(c.Hash(), want) || len(c.Hash()) != len(want)+64 {
		t.Errorf("hash %q", c.Hash())
	}
	for name, tt := range map[string]struct {
		old, new string
		same     bool
	}{
		"the socket":           {"unix:///run/a", "unix:///run/b", true},
		"a resource is gone":   {"secrets, events", "secrets", false},
		"another provider":     {"name: ours", "name: theirs", false},
		"identity is not read": {", {identity: {}}", "", false},
		"identity writes":      {`{kms: {apiVersion: v2, name: ours, endpoint: "unix:///run/a"}}, {identity: {}}`, `{identity: {}}, {kms: {apiVersion: v2, name: ours, endpoint: "unix:///run/a"}}`, false},
	} {
		o := parse(strings.Replace(text, tt.old, tt.new, 1))
		if c.Same(o) != tt.same || o.Same(c) != tt.same || o.Hash() == c.Hash() {
			t.Errorf("%s: same %t, want %t", name, c.Same(o), tt.same)
		}
	}
}
