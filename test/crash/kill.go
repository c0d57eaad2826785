// Package crash kills a process at every system call by which it changes a file of
// ours. What is left then is looked at by whoever gives it the process.
package crash

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kms-plugin.io/test/lack"
)

// changing are the system calls by which a program changes files.
const changing = "openat,mkdirat,write,pwrite64,ftruncate,fchmod,fchmodat,fchown,fchownat,fsync,fdatasync,renameat,renameat2,linkat,symlinkat,unlinkat"

// attempts to hit a point: a goroutine of the runtime may come in between.
const attempts = 5

// point is a system call by which a run changes something below its directory.
type point struct {
	call string
	nth  int    // of these calls of its thread, also elsewhere
	on   string // its arguments, for people
}

func (p point) String() string { return p.call + "(" + p.on }

// run is one run of a program below strace.
type run struct {
	dir    string
	said   string // standard output
	killed bool
	points []point // what it came to, the one it was killed at among them
}

// AtEveryPoint kills the process that begin prepares in a new directory at each
// system call that changes something there, before the call is made; after checks
// what is left, and what the process said until then. The process must do its work
// on one thread (runtime.LockOSThread), as strace counts the calls of each. It is an
// error if there are not that many points.
func AtEveryPoint(t *testing.T, least int, begin func(dir string) *exec.Cmd, after func(dir, said string) error) {
	t.Helper()
	if err := exec.CommandContext(t.Context(), "strace", "-o", "/dev/null", "true").Run(); err != nil {
		lack.Skip(t, "strace is needed, and leave to trace: %v", err)
	}
	whole := strace(t, begin, "")
	if err := after(whole.dir, whole.said); err != nil || whole.killed {
		t.Fatalf("not killed at all: %v", err)
	}
	for i, p := range whole.points {
		r := killedAt(t, begin, p, i)
		if err := after(r.dir, r.said); err != nil {
			t.Errorf("killed at point %d, %s: %v", i+1, p, err)
		}
	}
	t.Logf("killed at %d points", len(whole.points))
	if len(whole.points) < least {
		t.Errorf("killed at %d points only, there must be %d", len(whole.points), least)
	}
}

// killedAt tries until the i-th point was the last.
func killedAt(t *testing.T, begin func(dir string) *exec.Cmd, p point, i int) run {
	t.Helper()
	for range attempts {
		r := strace(t, begin, fmt.Sprintf("inject=%s:signal=KILL:when=%d", p.call, p.nth))
		if r.killed && len(r.points) == i+1 && r.points[i].call == p.call {
			return r
		}
	}
	t.Fatalf("%d times the process was not killed at point %d, %s", attempts, i+1, p)
	return run{}
}

func strace(t *testing.T, begin func(dir string) *exec.Cmd, inject string) run {
	t.Helper()
	r := run{dir: t.TempDir()}
	log := filepath.Join(t.TempDir(), "log")
	victim := begin(r.dir)
	args := []string{"-f", "-qq", "-y", "-s", "0", "-o", log, "-e", "trace=" + changing}
	if inject != "" {
		args = append(args, "-e", inject)
	}
	c := exec.CommandContext(t.Context(), "strace", append(args, victim.Args...)...)
	c.Env = append(os.Environ(), victim.Env...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	var e *exec.ExitError
	if err != nil && (!errors.As(err, &e) || e.Exited() || stderr.Len() > 0) {
		t.Fatalf("%v: %v: %s", victim.Args, err, stderr.String())
	}
	data, lerr := os.ReadFile(log)
	if lerr != nil {
		t.Fatal(lerr)
	}
	r.said, r.killed, r.points = stdout.String(), err != nil, points(string(data), r.dir)
	return r
}

// entered is a system call that begins: its thread, name and arguments.
var entered = regexp.MustCompile(`^(\d+) +(\w+)\((.*)`)

func points(log, dir string) (out []point) {
	seen := map[string]int{}
	for line := range strings.Lines(log) {
		m := entered.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		seen[m[1]+m[2]]++
		if strings.Contains(m[3], dir) && (m[2] != "openat" || strings.Contains(m[3], "O_CREAT")) {
			out = append(out, point{m[2], seen[m[1]+m[2]], strings.ReplaceAll(m[3], dir, "")})
		}
	}
	return out
}
