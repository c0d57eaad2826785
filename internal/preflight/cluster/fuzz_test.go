package cluster_test

import (
	"os"
	"path/filepath"
	"testing"

	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/cluster"
)

// Whatever stands in the three files, every check gives one result.
func FuzzManifest(f *testing.F) {
	f.Add(manifest, encryption, pluginConfig)
	f.Add("kind: Pod\nspec: {containers: [{name: kube-apiserver, command: [--encryption-provider-config]}]}", encryption, "")
	f.Add("kind: Pod\nspec: {containers: [{name: kube-apiserver, args: [--encryption-provider-config, '..'], volumeMounts: [{name: x, mountPath: /}]}], volumes: [{name: x, hostPath: {}}]}", encryption, pluginConfig)
	f.Add("&a [*a]", "resources: &a [*a]", "&a {b: *a}")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, pod, enc, plugin string) {
		o := cluster.Options{Manifest: filepath.Join(dir, "pod"), Encryption: filepath.Join(dir, "enc"), PluginConfig: filepath.Join(dir, "plugin")}
		for file, data := range map[string]string{o.Manifest: pod, o.Encryption: enc, o.PluginConfig: plugin} {
			if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var checks []preflight.Check
		for _, c := range cluster.Checks(o) {
			if c.Name != "plugin-socket" { // it dials what the fuzzer chose
				checks = append(checks, c)
			}
		}
		for _, c := range preflight.Run(t.Context(), checks, preflight.Options{}).Checks {
			if c.Level == "" || c.Message == "" || c.Level == preflight.Problem && c.Remedy == "" {
				t.Errorf("%s gives %+v", c.Name, c.Result)
			}
		}
	})
}
