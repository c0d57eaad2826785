package cluster_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/cluster"
)

// The short form names faults of the files, and looks at nothing else.
func TestOfFiles(t *testing.T) {
	dir := t.TempDir()
	plugin, enc := filepath.Join(dir, "plugin.yaml"), filepath.Join(dir, "enc.yaml")
	for _, c := range []struct{ name, plugin, encryption, check string }{
		{"well", pluginConfig, encryption, ""},
		{"typo", strings.Replace(pluginConfig, "stateDir", "statedir", 1), encryption, "plugin-config"},
		{"wrong ARN", strings.Replace(pluginConfig, ":key/", ":alias/", 1), encryption, "plugin-config"},
		{"KMS v1", pluginConfig, strings.Replace(encryption, "apiVersion: v2, ", "apiVersion: v1, ", 1), "kms-version"},
		{"other socket", pluginConfig, strings.Replace(encryption, "kms.sock", "other.sock", 1), "kms-endpoint"},
		{"plain", pluginConfig, strings.Replace(encryption, "[secrets]", "[configmaps]", 1), "plain-resources"},
		{"no encryption", pluginConfig, "kind: x\n", "encryption-config"},
	} {
		config := strings.ReplaceAll(c.plugin, "DIR/run", "/run/kms-plugin")
		for file, data := range map[string]string{plugin: strings.ReplaceAll(config, "DIR", dir), enc: c.encryption} {
			if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := preflight.Run(t.Context(), cluster.OfFiles(plugin, enc), preflight.Options{})
		var problems []string
		for _, o := range r.Checks {
			if o.Level == preflight.Problem {
				problems = append(problems, o.Name)
			}
			if o.Remedy == "" && (o.Level == preflight.Problem || o.Level == preflight.Warning) {
				t.Errorf("%s: %s has no remedy", c.name, o.Name)
			}
		}
		if got := strings.Join(problems, " "); got != c.check || len(r.Checks) != 8 {
			t.Errorf("%s: problems %q in %d checks, want %q: %+v", c.name, got, len(r.Checks), c.check, r.Checks)
		}
	}
}
