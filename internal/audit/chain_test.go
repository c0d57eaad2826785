package audit_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/audit/evidence"
)

const (
	// crasher is set in the child process that writes until it is killed.
	crasher = "AUDIT_TEST_CRASHER"
	// limited is set in the one whose files may not grow.
	limited = "AUDIT_TEST_LIMITED"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(crasher); path != "" {
		fmt.Fprintln(os.Stderr, writeForEver(path, os.Getenv(crasher+"_REFUSE") != ""))
		os.Exit(1)
	}
	if dir := os.Getenv(limited); dir != "" {
		if err := fillDisks(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// writeForEver records as fast as it can and opens the log again now and then, for
// its parent rotates it.
func writeForEver(path string, refuse bool) error {
	l, err := audit.Open(audit.Config{Path: path, Refuse: refuse})
	if err != nil {
		return err
	}
	go func() { _ = l.Run(context.Background()) }()
	for i := 0; ; i++ {
		if err := l.Record(audit.Record{Op: "decrypt", UID: fmt.Sprint(i), Error: strings.Repeat("x", i%1000), Outcome: "ok"}); err != nil {
			return err
		}
		if i%500 == 499 {
			if err := l.Reopen(); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// holds demands that nothing is found in files, and gives what they hold.
func holds(t *testing.T, files ...string) *evidence.Report {
	t.Helper()
	r, err := evidence.Verify(files, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Holds {
		t.Fatalf("%v: %+v", files, r.Findings)
	}
	return r
}

func write(t *testing.T, l *audit.Log, n int) {
	t.Helper()
	for i := range n {
		if err := l.Record(audit.Record{Op: "encrypt", UID: fmt.Sprint(i), Outcome: "ok"}); err != nil {
			t.Fatal(err)
		}
	}
}

// SIGKILL at random moments, with rotations by another process in between: what is
// left holds together, and the next start goes on with it.
func TestKilledAtRandomMoments(t *testing.T) {
	for _, refuse := range []string{"", "1"} {
		dir := t.TempDir()
		path := filepath.Join(dir, "audit.log")
		var files []string
		for round := range 12 {
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), crasher+"="+path, crasher+"_REFUSE="+refuse)
			out := &strings.Builder{}
			child.Stderr = out
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			awaitGrowth(t, path)
			time.Sleep(time.Duration(rand.N(30_000)) * time.Microsecond) // any moment is a good one
			if round%3 == 1 {
				old := fmt.Sprintf("%s.%d", path, round)
				if err := os.Rename(path, old); err != nil {
					t.Fatal(err)
				}
				files = append(files, old)
				time.Sleep(time.Duration(rand.N(10_000)) * time.Microsecond)
			}
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			if _ = child.Wait(); out.Len() > 0 {
				t.Fatal(out)
			}
		}
		l := open(t, audit.Config{Path: path, Refuse: true})
		write(t, l, 1)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		r := holds(t, append(files, path)...)
		if len(r.Chains) != 1 || r.Chains[0].First != 1 || r.Chains[0].Last < 100 {
			t.Errorf("refuse %q: %+v", refuse, r.Chains)
		}
	}
}

// awaitGrowth waits until the file has more than it had.
func awaitGrowth(t *testing.T, path string) {
	t.Helper()
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	for was, end := size(), time.Now().Add(time.Minute); size() <= was+2000; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the child writes nothing")
		}
	}
}

// A crash, or a loss of power, can leave any beginning of what was written.
func TestCrashAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	l := open(t, audit.Config{Path: path, Refuse: true, Sync: audit.SyncNone})
	write(t, l, 2)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) + 1 {
		part := filepath.Join(dir, "part")
		if err := os.WriteFile(part, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		again := open(t, audit.Config{Path: part, Refuse: true, Sync: audit.SyncNone})
		write(t, again, 1)
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		holds(t, part)
		// Rotated by the time of the restart: the next file tells of it.
		if err := errors.Join(os.WriteFile(part+".1", whole[:n], 0o600), os.Remove(part)); err != nil {
			t.Fatal(err)
		}
		again = open(t, audit.Config{Path: part, Refuse: true, Sync: audit.SyncNone})
		write(t, again, 1)
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		if r := holds(t, part, part+".1"); n > 400 && len(r.Chains) != 1 {
			t.Errorf("%d bytes: %+v", n, r.Chains)
		}
		if err := errors.Join(os.Remove(part), os.Remove(part+".1")); err != nil {
			t.Fatal(err)
		}
	}
}

// SIGHUP without a rotation changes nothing.
func TestReopenOfTheSameFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Config{Path: path, Refuse: true})
	write(t, l, 1)
	for range 3 {
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	write(t, l, 1)
	if r := holds(t, path); r.Chains[0].Last != 3 {
		t.Errorf("%+v, want the opening and two records", r.Chains[0])
	}
	// A file that cannot be opened leaves the old one in use.
	if err := errors.Join(os.Rename(path, path+".1"), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("Reopen = %v", err)
	}
	write(t, l, 1)
	if r := holds(t, path+".1"); r.Chains[0].Last != 4 {
		t.Errorf("%+v, want one record more", r.Chains[0])
	}
}

func TestTwoWritersAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Config{Path: path})
	if _, err := audit.Open(audit.Config{Path: path}); err == nil || !strings.Contains(err.Error(), "written by another process") {
		t.Errorf("a second Open = %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, audit.Config{Path: path})
}

// The anchor is what survives a loss of power, by each policy.
func TestAnchorFollowsSync(t *testing.T) {
	for _, policy := range []audit.Sync{audit.SyncNone, audit.SyncEach} {
		l := open(t, audit.Config{Path: filepath.Join(t.TempDir(), "a"), Refuse: true, Sync: policy})
		write(t, l, 2)
		if h, err := audit.ParseAnchor(l.Anchor()); err != nil || h.Seq != 3 {
			t.Errorf("%s: anchor %q, %v", policy, l.Anchor(), err)
		}
	}
	l := open(t, audit.Config{Path: filepath.Join(t.TempDir(), "a"), Refuse: true})
	write(t, l, 2)
	if got := l.Anchor(); got != "" {
		t.Errorf("anchor %q before any fsync", got)
	}
	go func() { _ = l.Run(t.Context()) }()
	for end := time.Now().Add(time.Minute); l.Anchor() == ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never synced")
		}
	}
	if h, err := audit.ParseAnchor(l.Anchor()); err != nil || h.Seq != 3 {
		t.Errorf("anchor %q, %v", l.Anchor(), err)
	}
}

func TestParseAnchorRefuses(t *testing.T) {
	good := "0123456789abcdef:7:" + strings.Repeat("ab", 32)
	if h, err := audit.ParseAnchor(good); err != nil || h.Anchor() != good {
		t.Errorf("ParseAnchor(%q) = %v, %v", good, h, err)
	}
	for _, s := range []string{"", "::", good + ":", strings.ToUpper(good), strings.Replace(good, ":7:", ":07:", 1), strings.Replace(good, ":7:", ":0:", 1),
		strings.Replace(good, ":7:", ":-7:", 1), strings.Replace(good, ":7:", ":99999999999999999999:", 1), good[1:], good[:len(good)-1]} {
		if _, err := audit.ParseAnchor(s); err == nil || !strings.Contains(err.Error(), "not an anchor") {
			t.Errorf("ParseAnchor(%q) = %v", s, err)
		}
	}
}
