package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/cli"
)

const initARN = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

func write(t *testing.T, path, data string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestInitRefuses(t *testing.T) {
	dir := t.TempDir()
	file, empty := write(t, filepath.Join(dir, "file"), "a: b\n"), write(t, filepath.Join(dir, "empty"), "")
	large := write(t, filepath.Join(dir, "large"), strings.Repeat("#", 1<<20+1))
	good := []string{"init", "--cluster-id", "c", "--localfile"}
	for _, c := range []struct {
		name   string
		args   []string
		code   int
		stderr string
	}{
		{"nothing", []string{"init"}, cli.ExitUsage, "kmsctl: error: where to?\nhint: give --dir DIR, or -o text to print the files\n"},
		{"no cluster id", []string{"init", "--dir", dir + "/x"}, cli.ExitUsage, "kmsctl: error: --cluster-id \"\" is not a cluster id"},
		{"no key", []string{"init", "--dir", dir + "/x", "--cluster-id", "c"}, cli.ExitUsage, "hint: give --key-arn ARN, or --localfile for a lab\n"},
		{"an argument", append(good, "x"), cli.ExitUsage, "unknown command"},
		{"output", append(good, "-o", "yaml"), cli.ExitUsage, "-o \"yaml\" is neither text nor json"},
		{"output twice", append(good, "-o", "json", "--stdout"), cli.ExitUsage, "--stdout is -o text, and -o json is given"},
		{"output and dir", append(good, "-o", "text", "--dir", dir+"/x"), cli.ExitUsage, "-o prints and writes nothing"},
		{"layout", append(good, "--dir", dir+"/x", "--layout", "k3s"), cli.ExitUsage, "--layout \"k3s\" is neither kubeadm nor generic\nhint: "},
		{"from nowhere", append(good, "--dir", dir+"/x", "--from", dir+"/none"), cli.ExitFailed, "--from: open " + dir + "/none: no such file"},
		{"from rubbish", append(good, "--dir", dir+"/x", "--from", file), cli.ExitUsage, "--from cannot be used: "},
		{"from empty", append(good, "--dir", dir+"/x", "--from", empty), cli.ExitFailed, "is empty"},
		{"from too much", append(good, "--dir", dir+"/x", "--from", large), cli.ExitFailed, "has more than 1048576 bytes"},
		{"kubeadm nowhere", append(good, "--dir", dir+"/x", "--kubeadm-config", dir+"/none"), cli.ExitFailed, "--kubeadm-config: open"},
		{"dir is a file", append(good, "--dir", file), cli.ExitFailed, "is not a directory\nhint: give another one\n"},
	} {
		out, errs, code := command(c.args...)
		if code != c.code || out != "" || !strings.Contains(errs, c.stderr) || strings.Count(errs, "\n") != 2 && strings.Contains(errs, "hint:") {
			t.Errorf("%s: code %d, stdout %q, stderr %q; want code %d, %q", c.name, code, out, errs, c.code, c.stderr)
		}
	}
	if _, err := os.Stat(dir + "/x"); err == nil {
		t.Error("an error made the directory")
	}
}

// treeOf is what a directory holds, with modes and times.
func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data := ""
		if !d.IsDir() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			data = string(b)
		}
		out[strings.TrimPrefix(path, dir)] = info.Mode().String() + " " + info.ModTime().String() + " " + data
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// What is there is kept, unless --force.
func TestInitWrites(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	args := []string{"init", "--cluster-id", "c", "--key-arn", initARN, "--dir", dir}
	out, errs, code := command(append(args, "--dry-run")...)
	if _, err := os.Stat(dir); code != cli.ExitOK || errs != "" || !strings.Contains(out, "  0600    4") || err == nil {
		t.Fatalf("dry run: code %d, %q, %q, directory %v", code, out, errs, err)
	}
	out, errs, code = command(args...)
	if code != cli.ExitOK || errs != "" || !strings.Contains(out, "new      kms-plugin/config.yaml\n") || !strings.HasSuffix(out, "next: read "+dir+"/README.md\n") {
		t.Fatalf("first: code %d, %q, %q", code, out, errs)
	}
	for path, want := range map[string]fs.FileMode{"": fs.ModeDir | 0o700, "kms-plugin": fs.ModeDir | 0o700, "kms-plugin/config.yaml": 0o600, "encryption/2-write.yaml": 0o600, "README.md": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode() != want {
			t.Errorf("%q: %v, %v; want mode %v", path, info, err, want)
		}
	}
	before := treeOf(t, dir)
	if out, _, code = command(args...); code != cli.ExitOK || strings.Contains(out, " new ") || strings.Contains(out, "differs") {
		t.Errorf("again: code %d, %q", code, out)
	}
	other := []string{"init", "--cluster-id", "d", "--key-arn", initARN, "--dir", dir, "--run", "systemd"}
	out, errs, code = command(other...)
	if code != cli.ExitFailed || !strings.Contains(errs, "differ from what would be written; nothing was written\nhint: look at them, and give --force") ||
		!strings.Contains(out, "differs  kms-plugin/config.yaml\n") || !strings.Contains(out, "not of this command, left alone: kms-plugin/kms-plugin.yaml\n") {
		t.Errorf("other flags: code %d, %q, %q", code, out, errs)
	}
	after := treeOf(t, dir)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s changed", path)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d files before, %d after", len(before), len(after))
	}
	if _, errs, code = command(append(other, "--force")...); code != cli.ExitOK {
		t.Fatalf("force: code %d, %q", code, errs)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "kms-plugin/config.yaml")); err != nil || !strings.Contains(string(b), "clusterID: d\n") {
		t.Errorf("after --force: %v, %s", err, b)
	}
}

// What is in the way and no file is never replaced, and a wrong mode is put right.
func TestInitInTheWay(t *testing.T) {
	dir := t.TempDir()
	args := []string{"init", "--cluster-id", "c", "--localfile", "--dir", dir}
	if err := os.Symlink("/etc/passwd", dir+"/alerts.yaml"); err != nil {
		t.Fatal(err)
	}
	_, errs, code := command(append(args, "--force")...)
	if code != cli.ExitFailed || !strings.Contains(errs, "/alerts.yaml\" is in the way, and is not a regular file\nhint: ") {
		t.Errorf("symlink: code %d, %q", code, errs)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("it wrote before it looked: %v, %v", entries, err)
	}
	if err := os.Remove(dir + "/alerts.yaml"); err != nil {
		t.Fatal(err)
	}
	if _, errs, code = command(args...); code != cli.ExitOK {
		t.Fatal(errs)
	}
	path := dir + "/kms-plugin/config.yaml"
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	out, errs, code := command(args...)
	info, err := os.Stat(path)
	if code != cli.ExitOK || err != nil || info.Mode() != 0o600 || !strings.Contains(out, "mode     kms-plugin/config.yaml") {
		t.Errorf("mode: code %d, %q, %q, %v", code, out, errs, info.Mode())
	}
}

// Keys of the file that is moved in from are written, and never shown.
func TestInitShowsNoKeys(t *testing.T) {
	const key = "c2VjcmV0IGlzIHNlY3VyZQ=="
	dir := t.TempDir()
	from := write(t, filepath.Join(dir, "enc.yaml"), `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - aescbc: {keys: [{name: key1, secret: `+key+`}]}
  - identity: {}
`)
	args := []string{"init", "--cluster-id", "c", "--key-arn", initARN, "--from", from}
	for _, more := range [][]string{{"-o", "text"}, {"--stdout"}, {"-o", "json"}, {"--show", "--dir", dir + "/out"}} {
		out, errs, code := command(append(args, more...)...)
		if code != cli.ExitOK || strings.Contains(out+errs, key) || !strings.Contains(out, "encryption/1-read.yaml") || !strings.Contains(out, "clusterID: c") {
			t.Errorf("%v: code %d, %q, %q", more, code, out, errs)
		}
	}
	b, err := os.ReadFile(dir + "/out/encryption/2-write.yaml")
	if err != nil || !strings.Contains(string(b), key) {
		t.Errorf("the old key is gone: %v, %s", err, b)
	}
	readme, err := os.ReadFile(dir + "/out/README.md")
	if err != nil || !strings.Contains(string(readme), "`"+from+"`, first") {
		t.Errorf("the file is not the one moved in from: %v, %s", err, readme)
	}
}

func TestInitJSON(t *testing.T) {
	out, _, code := command("init", "--cluster-id", "c", "--localfile", "-o", "json")
	var r struct {
		APIVersion string
		Files      []struct {
			Path, Mode, Content string
			Bytes               int
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != cli.ExitOK || r.APIVersion != "kms-plugin.io/init/v1" || len(r.Files) < 7 {
		t.Fatalf("code %d, %v: %s", code, err, out)
	}
	for _, f := range r.Files {
		if f.Bytes != len(f.Content) || f.Mode != "0600" && f.Mode != "0644" {
			t.Errorf("%+v", f)
		}
	}
}

// What is written is looked at as kmsctl preflight does, and a problem in it ends
// with the exit code of one.
func TestInitRunsPreflight(t *testing.T) {
	dir := t.TempDir()
	args := func(name string, more ...string) []string {
		return append([]string{"init", "--cluster-id", "c", "--key-arn", initARN, "--dir", filepath.Join(dir, name)}, more...)
	}
	from := write(t, filepath.Join(dir, "enc.yaml"), `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - kms: {name: old, endpoint: "unix:///run/old.sock"}
`)
	const passed = ": passed: 0 problems, 0 warnings in 8 checks\n"
	for _, c := range []struct {
		name  string
		args  []string
		code  int
		wants []string
	}{
		{"new", args("new"), cli.ExitOK, []string{"preflight of kms-plugin/config.yaml and encryption/2-write.yaml" + passed, "encryption/3-finish.yaml" + passed, "next: read"}},
		{"existing", args("existing", "--existing-cluster"), cli.ExitOK, []string{"encryption/1-read.yaml" + passed, "encryption/2-write.yaml" + passed, "next: read"}},
		{"secrets in plain", args("plain", "--resources", "configmaps"), cli.ExitFound,
			[]string{"NOT PASSED: 1 problem", "problem: plain-resources: secrets stay in plain text\n    hint: add secrets to the resources of the kms provider\n"}},
		{"KMS v1", args("v1", "--from", from), cli.ExitFound, []string{`problem: kms-version: provider "old" speaks KMS v1`, "encryption/3-finish.yaml" + passed}},
	} {
		out, errs, code := command(c.args...)
		for _, want := range c.wants {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s%s", c.name, want, out, errs)
			}
		}
		if code != c.code {
			t.Errorf("%s: code %d, want %d: %s", c.name, code, c.code, errs)
		}
	}
}
