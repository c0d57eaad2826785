package harden_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"kms-plugin.io/internal/harden"
)

// A process cannot take its hardening back, so each test has it done by a child:
// this test binary, started with the orders in its environment.
const childEnv = "HARDEN_TEST_CHILD"

// orders are what a child has to do.
type orders struct {
	Do      string // "attempt", "crash", "resolve", "run" or "wait"
	Policy  harden.Policy
	Outside string // a file that the policy does not open
	Inside  string // a directory that it lets write
	Read    string // a directory that it lets read
	Dial    string // a TCP listener of the parent
}

// outcome is what a child found: errors by name of the attempt, "" for success.
type outcome struct {
	Measures []harden.Measure
	Attempts map[string]string
	Opens    map[string]bool
	Closed   []string
}

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		var o orders
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			panic(err)
		}
		child(o)
		return
	}
	os.Exit(m.Run())
}

func child(o orders) {
	if err := harden.NoDump(); err != nil {
		panic(err)
	}
	if o.Do == "resolve" {
		harden.SetResolver(o.Outside)
	}
	r := harden.Apply(o.Policy)
	switch o.Do {
	case "crash":
		_ = unix.Kill(unix.Getpid(), unix.SIGABRT)
		select {}
	case "resolve":
		resolve(r, o)
		return
	case "run":
		c := exec.Command(o.Outside, "-u")
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		if err := c.Run(); err != nil {
			panic(err)
		}
		return
	case "wait":
		fmt.Println("ready")
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	out := outcome{Measures: r.Measures, Attempts: map[string]string{}, Closed: r.Closed(), Opens: map[string]bool{
		"outside": r.Opens(o.Outside), "inside": r.Opens(filepath.Join(o.Inside, "x")), "read": r.Opens(filepath.Join(o.Read, "config"))}}
	for name, f := range attempts(o) {
		out.Attempts[name] = ""
		if err := f(); err != nil {
			out.Attempts[name] = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		panic(err)
	}
}

// attempts by name; those that begin with "may" must always succeed.
func attempts(o orders) map[string]func() error {
	raw := func(n uintptr, args ...uintptr) func() error {
		return func() error {
			var a [6]uintptr
			copy(a[:], args)
			if _, _, errno := unix.Syscall6(n, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
				return errno
			}
			return nil
		}
	}
	minus := ^uintptr(0)
	return map[string]func() error{
		"may read its configuration":    func() error { _, err := os.ReadFile(filepath.Join(o.Read, "config")); return err },
		"may read /etc/hosts":           func() error { _, err := os.ReadFile("/etc/hosts"); return err },
		"may read of itself in /proc":   func() error { _, err := os.ReadFile("/proc/self/limits"); return err },
		"may write /dev/null":           func() error { return os.WriteFile("/dev/null", []byte("x"), 0) },
		"may replace its state":         func() error { return replace(o.Inside) },
		"may call out":                  func() error { c, err := net.Dial("tcp", o.Dial); closeIf(c, err); return err },
		"may start threads":             threads,
		"read a file outside":           func() error { _, err := os.ReadFile(o.Outside); return err },
		"read /etc/passwd":              func() error { _, err := os.ReadFile("/etc/passwd"); return err },
		"read the environment of init":  func() error { _, err := os.ReadFile("/proc/1/comm"); return err },
		"write beside the config":       func() error { return os.WriteFile(filepath.Join(o.Read, "new"), nil, 0o600) },
		"make a link in the state":      func() error { return os.Symlink("/", filepath.Join(o.Inside, "link")) },
		"start a program":               func() error { return exec.Command("/bin/true").Run() },
		"listen on TCP":                 func() error { l, err := net.Listen("tcp", "127.0.0.1:0"); closeIf(l, err); return err },
		"signal its parent":             func() error { return unix.Kill(unix.Getppid(), 0) },
		"read memory by pid":            func() error { return readMemory() },
		"turn memory to code":           func() error { return mmapCode() },
		"become dumpable":               raw(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 1),
		"open a netlink socket":         func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW) },
		"another identity":              raw(unix.SYS_SETRESUID, minus, minus, minus),
		"another personality":           raw(unix.SYS_PERSONALITY, 0xffffffff),
		"look at another's descriptors": raw(unix.SYS_KCMP, uintptr(unix.Getpid()), uintptr(unix.Getpid()), 0, 0, 0),
	}
}

func replace(dir string) error {
	tmp := filepath.Join(dir, ".tmp")
	return errors.Join(os.WriteFile(tmp, []byte("x"), 0o600), os.Rename(tmp, filepath.Join(dir, "state")), os.Remove(filepath.Join(dir, "state")))
}

// threads has the runtime make some after the lock-down.
func threads() error {
	done := make(chan error)
	for range 8 {
		go func() {
			_, err := net.LookupHost("localhost") // blocks in the kernel, where Go needs a thread
			done <- err
		}()
	}
	var errs error
	for range 8 {
		errs = errors.Join(errs, <-done)
	}
	return errs
}

func closeIf(c interface{ Close() error }, err error) {
	if err == nil {
		_ = c.Close()
	}
}

func readMemory() error {
	from, to := []byte("x"), make([]byte, 1)
	local, remote := []unix.Iovec{{Base: &to[0], Len: 1}}, []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&from[0])), Len: 1}}
	_, err := unix.ProcessVMReadv(unix.Getpid(), local, remote, 0)
	runtime.KeepAlive(from)
	return err
}

func mmapCode() error {
	m, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err == nil {
		_ = unix.Munmap(m)
	}
	return err
}

func socket(domain, kind int) error {
	fd, err := unix.Socket(domain, kind, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

// place makes the directories of a child, and a copy of this binary that any
// user may start.
func place(t *testing.T, uid int) (o orders, exe string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "harden")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o = orders{Do: "attempt", Outside: filepath.Join(dir, "secrets", "outside"), Inside: filepath.Join(dir, "state"), Read: filepath.Join(dir, "conf")}
	exe = filepath.Join(dir, "child")
	data, err := os.ReadFile("/proc/self/exe")
	err = errors.Join(err, os.Mkdir(o.Inside, 0o700), os.Mkdir(o.Read, 0o777), os.Mkdir(filepath.Dir(o.Outside), 0o755),
		os.WriteFile(o.Outside, []byte("x"), 0o644), os.WriteFile(filepath.Join(o.Read, "config"), []byte("x"), 0o644),
		os.WriteFile(exe, data, 0o755), os.Chmod(dir, 0o755), os.Chmod(o.Read, 0o777), os.Chown(o.Inside, uid, uid))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	o.Dial = ln.Addr().String()
	return o, exe
}

func command(t *testing.T, exe string, uid int, o orders) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), exe)
	c.Env, c.Dir = []string{childEnv + "=" + string(text), "GOTRACEBACK=crash"}, "/"
	if uid != os.Geteuid() {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return c
}
