package bootstrap_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"kms-plugin.io/internal/bootstrap"
	"kms-plugin.io/test/lack"
)

// maxExposure of `systemd-analyze security`, in tenths: 17 today. Whatever loosens
// the sandbox moves it.
const maxExposure = 20

// systemd itself finds nothing to say about the units, and thinks well of their
// sandbox.
func TestUnitsBySystemd(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		lack.Skip(t, "no systemd-analyze here")
	}
	dir := t.TempDir()
	for _, program := range []string{"kms-plugin", "kmsctl"} { // systemd looks whether it is there
		if err := os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	all := files(t, bootstrap.Params{ClusterID: "c", KeyARN: arn, Run: bootstrap.Systemd})
	var units []string
	for _, name := range []string{"kms-plugin.service", "kms-plugin.socket", "kms-canary.service", "kms-canary.timer"} {
		unit := bytes.ReplaceAll(data(t, all, "kms-plugin/"+name), []byte("/usr/local/bin/"), []byte(dir+"/"))
		units = append(units, filepath.Join(dir, name))
		if err := os.WriteFile(units[len(units)-1], unit, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), tool, append([]string{"verify", "--recursive-errors=no"}, units...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err = exec.CommandContext(t.Context(), tool, "security", "--offline=true", units[0]).CombinedOutput()
	m := regexp.MustCompile(`Overall exposure level for kms-plugin.service: (\d+)\.(\d) `).FindSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("systemd-analyze security: %v\n%s", err, out)
	}
	if got, _ := strconv.Atoi(string(m[1]) + string(m[2])); got > maxExposure {
		t.Errorf("exposure %d tenths, want at most %d:\n%s", got, maxExposure, out)
	}
}
