package rotation

import (
	"strings"
	"testing"

	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/drill"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/fleet"
)

// API servers whose files differ are compared by the files themselves.
func TestUnlike(t *testing.T) {
	parse := func(rules string) *encryptionconfig.Config {
		c, err := encryptionconfig.Parse([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n" + rules))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one, two, less := parse(rules), parse(strings.Replace(rules, "endpoint: x", "endpoint: y", 1)), parse(strings.Replace(rules, "secrets, ", "", 1))
	for name, tt := range map[string]struct {
		run  []string // hashes that the API servers show
		give []*encryptionconfig.Config
		want string
	}{
		"no reload, no hash":            {[]string{"", ""}, []*encryptionconfig.Config{one}, ""},
		"all alike":                     {[]string{"sha256:a", "sha256:a"}, []*encryptionconfig.Config{one}, ""},
		"they differ":                   {[]string{"sha256:a", "", "sha256:b"}, []*encryptionconfig.Config{one}, "run different EncryptionConfigurations"},
		"only sockets differ":           {[]string{one.Hash(), two.Hash()}, []*encryptionconfig.Config{one, two}, ""},
		"a file that is not given":      {[]string{one.Hash(), "sha256:b"}, []*encryptionconfig.Config{one, two}, "API server 1 runs an EncryptionConfiguration that is none of those given: sha256:b"},
		"the files differ in resources": {[]string{"", ""}, []*encryptionconfig.Config{one, less}, "differ in more than the sockets"},
	} {
		var servers []fleet.Server
		for i, h := range tt.run {
			servers = append(servers, fleet.Server{Name: string(rune('0' + i)), Config: h})
		}
		if got := unlike(servers, tt.give); !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// A report of a drill counts only for the very file.
func TestDrillOf(t *testing.T) {
	f := &Facts{Newest: &coverage.Snapshot{Source: etcdstore.Info{SHA256: "b"}}}
	all := []*drill.Report{{Source: etcdstore.Info{SHA256: "a"}}, {Source: etcdstore.Info{SHA256: "b"}, Seeds: 1}, {}}
	if got := f.drillOf(all); got != all[1] {
		t.Errorf("%+v", got)
	}
	f.Newest.Source.SHA256 = ""
	if got := f.drillOf(all); got != nil {
		t.Errorf("an unknown file: %+v", got)
	}
}
