package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/preflight"
)

func TestPreflight(t *testing.T) {
	dir := t.TempDir()
	socket := serve(t, plugin{})
	if err := os.Chmod(socket, 0o600); err != nil {
		t.Fatal(err)
	}
	config, enc := filepath.Join(dir, "plugin.yaml"), filepath.Join(dir, "enc.yaml")
	for file, data := range map[string]string{
		config: "apiVersion: kms-plugin.io/v1\nkind: KMSPluginConfiguration\nclusterID: c\nsocket: {path: " + socket + "}\nstateDir: /x\nkeys:\n- {name: k, role: write, localfile: {path: /x/k}}\n",
		enc: "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n  - kms: {apiVersion: v2, name: ours, endpoint: 'unix://" + socket +
			"', timeout: 1s}\n  - identity: {}\n",
	} {
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	node := []string{"preflight", "--plugin-config", config, "--encryption-config", enc, "--manifest", "", "--key", dir + "/none"}
	with := func(more ...string) []string { return append(append([]string(nil), node...), more...) }
	for _, c := range []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"well", with(), cli.ExitOK, "passed: 0 problems, 1 warning", ""},
		{"no etcd here", with(), cli.ExitOK, "[skipped] coverage: etcd cannot be read from here", ""},
		{"strict", with("--strict"), cli.ExitFound, "NOT PASSED: 0 problems, 1 warning", ""},
		{"skipped", with("--strict", "--skip", "kms-timeout"), cli.ExitOK, "[skipped] kms-timeout: by --skip", ""},
		{"socket", with(), cli.ExitOK, "[ok]      plugin-socket: a plugin serves " + socket + ", key_id prod:00", ""},
		{"wrong file", with("--plugin-config", enc), cli.ExitFound, "[PROBLEM] plugin-config", ""},
		{"plugin away", with("--plugins", "127.0.0.1:x"), cli.ExitOK, "[WARNING] plugins-agree: not reached: 127.0.0.1:x", ""},
		{"etcd away", with("--key", "", "--cert", "", "--cacert", "", "--endpoints", "https://127.0.0.1:1"), cli.ExitOK, "[WARNING] coverage: etcd cannot be read", ""},
		{"etcd not wanted", with("--no-etcd"), cli.ExitOK, "[skipped] coverage: etcd is not looked at", ""},
		{"unknown check", with("--skip", "bogus"), cli.ExitUsage, "", "--skip \"bogus\" is none of plugin-config, "},
		{"output", with("-o", "yaml"), cli.ExitUsage, "", "neither text nor json"},
	} {
		out, errs, code := command(c.args...)
		if code != c.code || !strings.Contains(out, c.stdout) || !strings.Contains(errs, c.stderr) {
			t.Errorf("%s: code %d, stdout %q, stderr %q; want code %d, %q, %q", c.name, code, out, errs, c.code, c.stdout, c.stderr)
		}
	}
	out, _, code := command(with("-o", "json")...)
	var r preflight.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != cli.ExitOK || r.APIVersion != preflight.APIVersion || r.Program != "kmsctl preflight" || !r.Passed || len(r.Checks) == 0 {
		t.Errorf("JSON with code %d, %v: %s", code, err, out)
	}
}
