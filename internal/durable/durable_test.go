package durable_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"kms-plugin.io/internal/durable"
)

// limited is set in the child process that may not write large files.
const limited = "DURABLE_TEST_LIMITED"

// listing is what a directory holds, by name.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// mustHold checks content and mode, and that nothing else is in the directory.
func mustHold(t *testing.T, path, data string, mode fs.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != data {
		t.Errorf("%s holds %d bytes, %v; want %d", filepath.Base(path), len(got), err, len(data))
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != mode {
		t.Errorf("mode %v, %v; want %v", info.Mode(), err, mode)
	}
	if got := listing(t, filepath.Dir(path)); got != filepath.Base(path) {
		t.Errorf("the directory holds %q, want %q alone", got, filepath.Base(path))
	}
}

func TestWriteFile(t *testing.T) {
	// The mode is exact: neither the umask nor the mode of the old file counts.
	defer syscall.Umask(syscall.Umask(0o077))
	path := filepath.Join(t.TempDir(), "state.json")
	for _, c := range []struct {
		data string
		mode fs.FileMode
	}{{"first", 0o600}, {"second, longer", 0o644}, {"3", 0o400}, {"", 0o600}, {strings.Repeat("x", 1<<20), 0o666}} {
		if err := durable.WriteFile(path, []byte(c.data), c.mode); err != nil {
			t.Fatal(err)
		}
		mustHold(t, path, c.data, c.mode)
	}
}

func TestIsLeftOf(t *testing.T) {
	for file, want := range map[string]bool{"d/.tmp-f-123": true, "d/./.tmp-f-": true, "d/.tmp-fg-123": false, "e/.tmp-f-123": false, "d/f": false, "d/.tmp-": false} {
		if got := durable.IsLeftOf(file, "d/f"); got != want {
			t.Errorf("IsLeftOf(%q) = %t, want %t", file, got, want)
		}
	}
}

// Who has the old file open reads it to its end: it is replaced, not rewritten.
func TestReaderOfTheOldFileKeepsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := durable.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := durable.WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8)
	if n, err := f.Read(got); err != nil || string(got[:n]) != "old" {
		t.Errorf("the open file reads %q, %v; want old", got[:n], err)
	}
	mustHold(t, path, "new", 0o600)
}

func TestSymlinkIsReplaced(t *testing.T) {
	target := filepath.Join(t.TempDir(), "target")
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.WriteFile(target, []byte("mine"), 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(link, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	mustHold(t, link, "new", 0o600)
	mustHold(t, target, "mine", 0o600)
}

func TestWriteFileFails(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "full"), 0o700), os.WriteFile(filepath.Join(dir, "full", "x"), nil, 0o600),
		os.Mkdir(filepath.Join(dir, "empty"), 0o700), os.WriteFile(filepath.Join(dir, "file"), []byte("old"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		want error
	}{
		"directory in its place":       {"full", syscall.EEXIST},
		"empty directory in its place": {"empty", syscall.EEXIST},
		"no parent":                    {"missing/f", fs.ErrNotExist},
		"parent is a file":             {"file/f", syscall.ENOTDIR},
		"name too long":                {strings.Repeat("n", 255), syscall.ENAMETOOLONG},
	} {
		path := filepath.Join(dir, c.path)
		before := listing(t, dir)
		err := durable.WriteFile(path, []byte("new"), 0o600)
		if !errors.Is(err, c.want) || !strings.HasPrefix(err.Error(), `write "`+path+`": `) {
			t.Errorf("%s: WriteFile = %v, want %v of %q", name, err, c.want, path)
		}
		if after := listing(t, dir); after != before {
			t.Errorf("%s: the directory held %q and now %q", name, before, after)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "old" {
		t.Errorf("a file nobody wrote to holds %q, %v", got, err)
	}
}

// withoutOverride runs f on a thread for which permissions count, root or not
// (capabilities(7): CAP_DAC_OVERRIDE).
func withoutOverride(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var was [2]unix.CapUserData
	if err := unix.Capget(&header, &was[0]); err != nil {
		t.Fatal(err)
	}
	now := was
	now[0].Effective &^= 1 << unix.CAP_DAC_OVERRIDE
	if err := unix.Capset(&header, &now[0]); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Capset(&header, &was[0]); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

func TestUnwritableDirectory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := errors.Join(os.WriteFile(path, []byte("old"), 0o600), os.Chmod(dir, 0o500)); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(dir, 0o700)
	withoutOverride(t, func() {
		if err := durable.WriteFile(path, []byte("new"), 0o600); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("WriteFile = %v, want a refusal", err)
		}
	})
	mustHold(t, path, "old", 0o600)
}

// A write that ends half way, as on a full disk, leaves the old content and no
// other file. A limit on the size of files stands for the full disk; it counts
// for a whole process, so a child does it.
func TestFullDisk(t *testing.T) {
	if path := os.Getenv(limited); path != "" {
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 4096, Max: 4096}); err != nil {
			t.Fatal(err)
		}
		if err := durable.WriteFile(path, bytes.Repeat([]byte("n"), 8192), 0o600); !errors.Is(err, syscall.EFBIG) {
			t.Fatalf("WriteFile = %v, want EFBIG", err)
		}
		return
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0], "-test.run=^TestFullDisk$")
	child.Env = append(os.Environ(), limited+"="+path)
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	mustHold(t, path, "old", 0o600)
}
