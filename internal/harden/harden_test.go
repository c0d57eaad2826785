package harden_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"kms-plugin.io/internal/harden"
	"kms-plugin.io/test/lack"
)

func enforce() harden.Policy {
	return harden.Policy{Dump: harden.Enforce, Memory: harden.Enforce, Privileges: harden.Enforce, Syscalls: harden.Enforce, Files: harden.Enforce}
}

func off() harden.Policy {
	return harden.Policy{Dump: harden.Off, Memory: harden.Off, Privileges: harden.Off, Syscalls: harden.Off, Files: harden.Off}
}

func attempt(t *testing.T, uid int, p harden.Policy) outcome {
	t.Helper()
	o, exe := place(t, uid)
	o.Policy = p
	o.Policy.Readable, o.Policy.Writable = []string{filepath.Join(o.Read, "config")}, append(o.Policy.Writable, o.Inside)
	c := command(t, exe, uid, o)
	var stderr strings.Builder
	c.Stderr = &stderr
	data, err := c.Output()
	if err != nil {
		t.Fatalf("child: %v\n%s", err, stderr.String())
	}
	var out outcome
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatalf("child said %q: %v", data, err)
	}
	return out
}

// users are the uids that tests run as.
func users(t *testing.T) []int {
	if os.Geteuid() != 0 {
		lack.Less(t, "not root: the tests run as this user alone")
		return []int{os.Geteuid()}
	}
	return []int{0, 65533}
}

// Every attempt succeeds with hardening off and is refused with it on: so it is
// the hardening that refuses it.
func TestAttemptedAndRefused(t *testing.T) {
	for _, uid := range users(t) {
		free, held := attempt(t, uid, off()), attempt(t, uid, enforce())
		for _, m := range held.Measures {
			if m.State != harden.Enforced && m.Name != harden.MeasureMemory {
				lack.Skip(t, "this kernel does not take all measures: %s is %s", m.Name, m)
			}
		}
		for name, err := range free.Attempts {
			if err != "" && !(name == "signal its parent" && uid != os.Geteuid()) {
				t.Errorf("uid %d, hardening off: %s: %s", uid, name, err)
			}
		}
		for name, err := range held.Attempts {
			switch may := strings.HasPrefix(name, "may "); {
			case may && err != "":
				t.Errorf("uid %d: %s: %s", uid, name, err)
			case !may && !strings.Contains(err, "permission denied") && !strings.Contains(err, "not permitted"):
				t.Errorf("uid %d: %s: got %q, want a refusal", uid, name, err)
			}
		}
		if !held.Opens["read"] || !held.Opens["inside"] || held.Opens["outside"] {
			t.Errorf("Opens = %v, want all but outside", held.Opens)
		}
		if !free.Opens["outside"] || held.Closed != nil {
			t.Errorf("unconfined Opens(outside) = %t, Closed = %v", free.Opens["outside"], held.Closed)
		}
	}
}

// Each measure can be loosened by itself.
func TestLoosened(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*harden.Policy)
		state  harden.State
		passes []string
		held   []string
	}{
		harden.MeasureFiles:    {func(p *harden.Policy) { p.Files = harden.Off }, harden.Loosened, []string{"read a file outside"}, []string{"start a program"}},
		harden.MeasureSyscalls: {func(p *harden.Policy) { p.Syscalls = harden.Off }, harden.Loosened, []string{"turn memory to code", "read memory by pid"}, []string{"read a file outside"}},
		harden.MeasureDump:     {func(p *harden.Policy) { p.Dump = harden.Off }, harden.Loosened, nil, []string{"read a file outside", "turn memory to code"}},
		"a shared directory":   {func(p *harden.Policy) { p.Writable = append(p.Writable, "/srv") }, harden.Partial, nil, []string{"read a file outside"}},
		"log":                  {func(p *harden.Policy) { p.Syscalls = harden.Log }, harden.Logged, []string{"turn memory to code", "open a netlink socket"}, []string{"read a file outside"}},
	} {
		p := enforce()
		tc.change(&p)
		got := attempt(t, os.Geteuid(), p)
		measure := name
		switch name {
		case "log":
			measure = harden.MeasureSyscalls
		case "a shared directory":
			measure = harden.MeasureFiles
		}
		if !slices.ContainsFunc(got.Measures, func(m harden.Measure) bool { return m.Name == measure && m.State == tc.state }) {
			t.Errorf("%s: measures are %v, want %s %s", name, got.Measures, measure, tc.state)
		}
		for _, a := range tc.passes {
			if got.Attempts[a] != "" {
				t.Errorf("%s loosened: %s: %s", name, a, got.Attempts[a])
			}
		}
		for _, a := range tc.held {
			if got.Attempts[a] == "" {
				t.Errorf("%s loosened: %s succeeded, another measure should refuse it", name, a)
			}
		}
	}
}

// waiting is a child that has done what o says, and ends with its input.
func waiting(t *testing.T, exe string, uid int, o orders) (*exec.Cmd, io.Closer) {
	t.Helper()
	c := command(t, exe, uid, o)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatalf("child: %v", err)
	}
	return c, in
}

// Memory is locked where it may be without limit, and never under one.
func TestMemoryIsLocked(t *testing.T) {
	for _, uid := range users(t) {
		o, exe := place(t, uid)
		o.Do, o.Policy = "wait", enforce()
		c, in := waiting(t, exe, uid, o)
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
			t.Fatal(err)
		}
		locked := !strings.Contains(string(status), "VmLck:\t       0 kB")
		if want := uid == 0 || limit.Cur == unix.RLIM_INFINITY; locked != want {
			t.Errorf("uid %d with a limit of %d: memory is locked: %t, want %t\n%s", uid, limit.Cur, locked, want, status)
		}
		if err := errors.Join(in.Close(), c.Wait()); err != nil {
			t.Errorf("child: %v", err)
		}
	}
}

// A crash leaves a core file only where that was asked for.
func TestCore(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil || strings.ContainsAny(string(pattern), "|/%") {
		lack.Skip(t, "core files go to %q here", pattern)
	}
	for name, p := range map[string]harden.Policy{"enforce": enforce(), "off": off()} {
		o, exe := place(t, os.Geteuid())
		o.Do, o.Policy = "crash", p
		o.Policy.Writable = []string{o.Inside}
		c := command(t, exe, os.Geteuid(), o)
		c.Dir = o.Inside
		err := runWithCore(c)
		var e *exec.ExitError
		if !errors.As(err, &e) || !e.Sys().(syscall.WaitStatus).Signaled() {
			t.Fatalf("%s: the child ended with %v, want a signal", name, err)
		}
		cores, err := filepath.Glob(filepath.Join(o.Inside, "core*"))
		if err != nil || (len(cores) > 0) != (name == "off") || e.Sys().(syscall.WaitStatus).CoreDump() != (name == "off") {
			t.Errorf("%s: core files %v (kernel says %t), %v", name, cores, e.Sys().(syscall.WaitStatus).CoreDump(), err)
		}
	}
}

// runWithCore starts a child that may leave a core file of any size.
func runWithCore(c *exec.Cmd) error {
	args := append([]string{"-c", `ulimit -c unlimited && exec "$0"`}, c.Path)
	sh := exec.Command("/bin/sh", args...)
	sh.Env, sh.Dir = c.Env, c.Dir
	return sh.Run()
}

// Another process of the same user cannot read the memory.
func TestMemoryOfTheSameUser(t *testing.T) {
	if os.Geteuid() != 0 {
		lack.Skip(t, "only root can start two children as another user")
	}
	const uid = 65533
	for name, p := range map[string]harden.Policy{"enforce": enforce(), "off": off()} {
		o, exe := place(t, uid)
		o.Do, o.Policy = "wait", p
		c, in := waiting(t, exe, uid, o)
		spy := exec.CommandContext(t.Context(), "/bin/sh", "-c", fmt.Sprintf("exec 3< /proc/%d/mem", c.Process.Pid))
		spy.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		text, err := spy.CombinedOutput()
		if refused := err != nil; refused != (name == "enforce") {
			t.Errorf("%s: opening the memory as the same user: %v %s", name, err, text)
		}
		if err := errors.Join(in.Close(), c.Wait()); err != nil {
			t.Errorf("%s: child: %v", name, err)
		}
	}
}
