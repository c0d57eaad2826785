package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/test/crash"
)

// inForce is the file that init moves in from. Its key comes into files that are made.
const inForce = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - aescbc: {keys: [{name: k, secret: ` + oldKey + `}]}
  - identity: {}
`

const oldKey = "c2VjcmV0IGlzIHNlY3VyZQ=="

// Whenever init is killed: what has the name of a file is that file, whole; what
// holds a key is closed to others; and the same command ends well, and names what
// the first one left behind.
func TestInitKilledAtEveryWritePoint(t *testing.T) {
	from := filepath.Join(t.TempDir(), "in-force.yaml")
	if err := os.WriteFile(from, []byte(inForce), 0o600); err != nil {
		t.Fatal(err)
	}
	args := func(dir string) []string {
		return []string{"init", "--cluster-id", "c", "--key-arn", initARN, "--from", from, "--dir", filepath.Join(dir, "kms")}
	}
	begin := func(dir string) *exec.Cmd {
		c := exec.Command(os.Args[0], args(dir)...)
		c.Env = []string{asProgram + "=1", "GOMAXPROCS=1", "GOGC=off"} // fewer calls, each of which strace stops
		return c
	}
	model := t.TempDir()
	if out, errs, code := command(args(model)...); code != cli.ExitOK {
		t.Fatalf("code %d: %s%s", code, out, errs)
	}
	whole, files := tree(t, model), 0
	for _, e := range whole {
		if e.mode.IsRegular() {
			files++
		}
	}
	crash.AtEveryPoint(t, 5*files, begin, func(dir, _ string) error {
		left := tree(t, dir)
		if err := partOf(left, whole); err != nil {
			return err
		}
		out, errs, code := command(args(dir)...)
		if code != cli.ExitOK {
			return fmt.Errorf("the same command again: code %d: %s%s", code, out, errs)
		}
		return ended(tree(t, dir), whole, out)
	})
	if data, err := os.ReadFile(from); err != nil || string(data) != inForce {
		t.Errorf("the file in force: %v, %s", err, data)
	}
}

// entry is one file of a tree, or a directory.
type entry struct {
	mode fs.FileMode
	data []byte
}

func tree(t *testing.T, dir string) map[string]entry {
	t.Helper()
	out := map[string]entry{}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		e := entry{mode: info.Mode()}
		if err == nil && !d.IsDir() {
			e.data, err = os.ReadFile(path)
		}
		out[strings.TrimPrefix(path, dir+"/")] = e
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func temporary(path string) bool { return strings.HasPrefix(filepath.Base(path), ".tmp-") }

// partOf says whether a tree that was left has nothing but whole files, temporary
// ones apart, and shows no key.
func partOf(left, whole map[string]entry) error {
	var errs []error
	for path, e := range left {
		if bytes.Contains(e.data, []byte(oldKey)) && e.mode != 0o600 {
			errs = append(errs, fmt.Errorf("%s holds a key and has mode %v", path, e.mode))
		}
		if want := whole[path]; !temporary(path) && (e.mode != want.mode || !bytes.Equal(e.data, want.data)) {
			errs = append(errs, fmt.Errorf("%s has mode %v and %d bytes, want %v and %d", path, e.mode, len(e.data), want.mode, len(want.data)))
		}
	}
	return errors.Join(errs...)
}

// ended says whether a tree is whole, and each temporary file in it was named as
// one that can be removed.
func ended(now, whole map[string]entry, said string) error {
	errs := []error{partOf(now, whole)}
	for path := range whole {
		if _, ok := now[path]; !ok {
			errs = append(errs, fmt.Errorf("%s is missing", path))
		}
	}
	for path := range now {
		if name := strings.TrimPrefix(path, "kms/"); temporary(path) && !strings.Contains(said, "left by a run that was cut short, remove it: "+name+"\n") {
			errs = append(errs, fmt.Errorf("%s is not named:\n%s", name, said))
		}
	}
	return errors.Join(errs...)
}
