package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/cli"
)

// command runs the program and gives what a person sees.
func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	err := run(context.Background(), args, &out, &errs)
	cli.Print(&errs, name, err)
	return out.String(), errs.String(), cli.ExitCode(err)
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	keyset, config := filepath.Join(dir, "k"), filepath.Join(dir, "config.yaml")
	good := "apiVersion: kms-plugin.io/v1\nkind: KMSPluginConfiguration\nclusterID: c\nsocket: {path: " + dir + "/s}\nstateDir: " + dir +
		"\nkeys:\n- name: k\n  role: write\n  localfile: {path: " + keyset + "}\n"
	write := func(data string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name, file  string
		args        []string
		code        int
		out, errors string
	}{
		{"help", "", nil, cli.ExitOK, "serve", ""},
		{"version", "", []string{"version"}, cli.ExitOK, "kms-plugin", ""},
		{"unknown command", "", []string{"bogus"}, cli.ExitUsage, "", "hint: kms-plugin --help"},
		{"unknown flag", "", []string{"serve", "--bogus"}, cli.ExitUsage, "", "unknown flag"},
		{"serve what", "", []string{"serve"}, cli.ExitUsage, "", "give one of --config FILE and --dev"},
		{"serve both", "", []string{"serve", "--dev", "--config", config}, cli.ExitUsage, "", "give one of"},
		{"check nothing", "", []string{"config", "check"}, cli.ExitUsage, "", "accepts 1 arg"},
		{"check no file", "", []string{"config", "check", "/nonexistent"}, cli.ExitFailed, "", "no such file"},
		{"check without keyset", good, []string{"config", "check", config}, cli.ExitFound, "line 7: keys[0]: key \"k\": keyset file", ""},
		{"keygen", "", []string{"keygen", keyset}, cli.ExitOK, "", "keep a copy"},
		{"keygen again", "", []string{"keygen", keyset}, cli.ExitFailed, "", "file exists"},
		{"check", good, []string{"config", "check", config}, cli.ExitOK, "OK", ""},
		{"check typo", good + "statedir: x\n", []string{"config", "check", config}, cli.ExitFound, "hint: is \"stateDir\" meant?", ""},
		{"check previous", good, []string{"config", "check", config, "--previous", config}, cli.ExitOK, "OK", ""},
		{"wait for what", "", []string{"wait", "--timeout", "0s"}, cli.ExitUsage, "", "--timeout 0s is not above zero"},
		{"wait in vain", "", []string{"wait", "--socket", dir + "/none", "--timeout", "50ms"}, cli.ExitFailed, "", "there is no socket \"" + dir + "/none\"\nhint: is the plugin running"},
		{"doctor", good, []string{"doctor", "--config", config}, cli.ExitOK, "passed: 0 problems", ""},
		{"strict doctor", good, []string{"doctor", "--config", config, "--strict"}, cli.ExitFound, "NOT PASSED", ""},
		{"doctor in JSON", good + "typo: 1\n", []string{"doctor", "--config", config, "-o", "json"}, cli.ExitFound, `"apiVersion": "kms-plugin.io/preflight/v1"`, ""},
		{"doctor for whom", good, []string{"doctor", "--config", config, "-o", "yaml"}, cli.ExitUsage, "", "neither text nor json"},
		{"doctor without what", good, []string{"doctor", "--config", config, "--skip", "bogus"}, cli.ExitUsage, "", "--skip \"bogus\" is none of config, state-dir"},
		{"completion", "", []string{"completion", "bash"}, cli.ExitOK, "complete", ""},
	} {
		if step.file != "" {
			write(step.file)
		}
		out, errs, code := command(t, step.args...)
		if code != step.code || !strings.Contains(out, step.out) || !strings.Contains(errs, step.errors) {
			t.Errorf("%s: code %d, stdout %q, stderr %q; want code %d, %q, %q", step.name, code, out, errs, step.code, step.out, step.errors)
		}
	}
}

// --dev never makes a second key where the first one was used.
func TestDevKeyIsNotMadeTwice(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	got, err := devDir(dir)
	if err != nil || got != dir {
		t.Fatalf("devDir = %q, %v", got, err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory has mode %v, %v; want 0700", info.Mode(), err)
	}
	first, err := os.ReadFile(filepath.Join(dir, "dev.keyset"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := devDir(dir); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(filepath.Join(dir, "dev.keyset"))
	if err != nil || !bytes.Equal(first, again) {
		t.Errorf("the key changed: %v", err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "state.json"), nil, 0o600), os.Remove(filepath.Join(dir, "dev.keyset"))); err != nil {
		t.Fatal(err)
	}
	var h interface{ Hint() string }
	if _, err := devDir(dir); !errors.As(err, &h) || !strings.Contains(err.Error(), "a new key could not open") {
		t.Errorf("devDir after the key was lost = %v, want a refusal", err)
	}
}
