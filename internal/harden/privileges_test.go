package harden_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kms-plugin.io/internal/harden"
	"kms-plugin.io/test/lack"
)

// alone is one measure without those that bring it along: a filter and Landlock set
// no_new_privs too.
func alone(privileges harden.Mode) harden.Policy {
	p := off()
	p.Privileges = privileges
	return p
}

// no_new_privs is on every thread of a process that waits, whichever other measures
// were taken; and on none with all off.
func TestNoThreadGainsPrivileges(t *testing.T) {
	for name, tc := range map[string]struct {
		policy harden.Policy
		want   string
	}{"all": {enforce(), "1"}, "alone": {alone(harden.Enforce), "1"}, "none": {off(), "0"}} {
		for _, uid := range users(t) {
			o, exe := place(t, uid)
			o.Do, o.Policy = "wait", tc.policy
			o.Policy.Writable = []string{o.Inside}
			c, in := waiting(t, exe, uid, o)
			paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", c.Process.Pid))
			if err != nil || len(paths) < 2 {
				t.Fatalf("%s: %d threads, %v: too few to tell", name, len(paths), err)
			}
			for _, path := range paths {
				status, err := os.ReadFile(path)
				if errors.Is(err, os.ErrNotExist) {
					continue // it ended meanwhile
				}
				if err != nil || !strings.Contains(string(status), "NoNewPrivs:\t"+tc.want+"\n") {
					t.Errorf("%s, uid %d: %v, want NoNewPrivs %s in %s:\n%s", name, uid, err, tc.want, path, status)
				}
			}
			if err := errors.Join(in.Close(), c.Wait()); err != nil {
				t.Errorf("%s: child: %v", name, err)
			}
		}
	}
}

// A program of root's with the setuid bit, started by another user, is root with the
// measure off and stays that user with it on.
func TestSetuidProgramGainsNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		lack.Skip(t, "only root can make a program of root's")
	}
	const uid = 65533
	for mode, want := range map[harden.Mode]string{harden.Off: "0", harden.Enforce: "65533"} {
		o, exe := place(t, uid)
		o.Do, o.Policy = "run", alone(mode)
		copyOfID(t, o.Outside)
		out, err := command(t, exe, uid, o).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("privileges %s: the program ran as %q, %v, want %s", mode, got, err, want)
		}
	}
}

// copyOfID is a program that prints its effective uid, root's and setuid.
func copyOfID(t *testing.T, path string) {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Flags&unix.ST_NOSUID != 0 {
		lack.Skip(t, "the temporary directory is mounted nosuid")
	}
	id, err := exec.LookPath("id")
	if err != nil {
		lack.Skip(t, "no program prints its uid here: %v", err)
	}
	data, err := os.ReadFile(id)
	if err == nil {
		err = errors.Join(os.WriteFile(path, data, 0o755), os.Chmod(path, 0o755|os.ModeSetuid))
	}
	if err != nil {
		t.Fatal(err)
	}
}
