package systemd_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/systemd"
)

// asChild makes the test binary ask for the socket that its parent passed.
const asChild = "SYSTEMD_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(asChild) == "" {
		os.Exit(m.Run())
	}
	f, err := systemd.Socket()
	switch {
	case err != nil:
		var h interface{ Hint() string }
		if errors.As(err, &h) {
			err = errors.New(err.Error() + " | " + h.Hint())
		}
		os.Stdout.WriteString("error " + err.Error())
	case f == nil:
		os.Stdout.WriteString("none")
	default:
		// A child of this one must not inherit it, nor the variables.
		out, _ := exec.Command("sh", "-c", "ls -l /proc/self/fd/3 2>/dev/null; env | grep LISTEN").CombinedOutput()
		os.Stdout.WriteString("fd " + strconv.Itoa(int(f.Fd())) + " inherited " + strconv.Quote(string(out)))
	}
	os.Exit(0)
}

// manager is the end of NOTIFY_SOCKET that systemd holds.
func manager(t *testing.T, name string) func() string {
	t.Helper()
	c := listen(t, name)
	return func() string {
		b := make([]byte, 4096)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestNotify(t *testing.T) {
	for name, addr := range map[string]string{"path": filepath.Join(short(t), "n"), "abstract": "@kms-plugin-test-" + strconv.Itoa(os.Getpid())} {
		t.Run(name, func(t *testing.T) {
			next := manager(t, addr)
			t.Setenv("NOTIFY_SOCKET", addr)
			t.Setenv("WATCHDOG_USEC", "30000000")
			t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
			n, err := systemd.FromEnvironment()
			if err != nil {
				t.Fatal(err)
			}
			if d := n.WatchdogInterval(); d != 15*time.Second {
				t.Errorf("WatchdogInterval = %s, want half of 30 s", d)
			}
			for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
				if _, set := os.LookupEnv(name); set {
					t.Errorf("%s is still set", name)
				}
			}
			for _, c := range []struct {
				send func() error
				want string
			}{
				{func() error { return n.Ready("all\nREADY=0 well") }, "READY=1\nSTATUS=all READY=0 well"},
				{func() error { return n.Status("x") }, "STATUS=x"},
				{n.Alive, "WATCHDOG=1"},
				{n.Stopping, "STOPPING=1"},
			} {
				if err := c.send(); err != nil {
					t.Fatal(err)
				}
				if got := next(); got != c.want {
					t.Errorf("systemd was told %q, want %q", got, c.want)
				}
			}
			if err := n.Reloading(); err != nil {
				t.Fatal(err)
			}
			if got := next(); !regexp.MustCompile(`^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]+$`).MatchString(got) {
				t.Errorf("systemd was told %q of a reload", got)
			}
		})
	}
}

// systemd binds its socket again, as after a restart of the manager: a connection
// to the old one must not be the end of it.
func TestManagerThatCameAgain(t *testing.T) {
	addr := filepath.Join(short(t), "n")
	first := listen(t, addr)
	t.Setenv("NOTIFY_SOCKET", addr)
	t.Setenv("WATCHDOG_USEC", "")
	n, err := systemd.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Close(), os.Remove(addr)); err != nil {
		t.Fatal(err)
	}
	if err := n.Alive(); err == nil {
		t.Error("a message to nobody was sent")
	}
	next := manager(t, addr)
	if err := n.Alive(); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "WATCHDOG=1" {
		t.Errorf("the manager that came again was told %q", got)
	}
}

func TestNobodyToTell(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n, err := systemd.FromEnvironment()
	if n != nil || err != nil || n.Ready("x") != nil || n.Reloading() != nil || n.WatchdogInterval() != 0 {
		t.Errorf("FromEnvironment without a manager = %v, %v", n, err)
	}
}

func TestEnvironmentRefused(t *testing.T) {
	for name, tc := range map[string]struct{ addr, usec, pid, want string }{
		"vsock":         {"vsock:2:1", "", "", "neither a path nor an abstract socket"},
		"no number":     {"/x", "soon", "", `WATCHDOG_USEC "soon"`},
		"negative":      {"/x", "-1", "", `WATCHDOG_USEC "-1"`},
		"for ever":      {"/x", "9223372036854775807", "", "up to a day"},
		"another's pid": {"/x", "soon", "1", ""},
	} {
		t.Setenv("NOTIFY_SOCKET", tc.addr)
		t.Setenv("WATCHDOG_USEC", tc.usec)
		t.Setenv("WATCHDOG_PID", tc.pid)
		n, err := systemd.FromEnvironment()
		if tc.want == "" {
			if err != nil || n.WatchdogInterval() != 0 {
				t.Errorf("%s: %v, interval %s; want none", name, err, n.WatchdogInterval())
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: FromEnvironment = %v, want %q", name, err, tc.want)
		}
	}
	t.Setenv("NOTIFY_SOCKET", "/nonexistent/n")
	t.Setenv("WATCHDOG_USEC", "")
	n, err := systemd.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Ready("x"); err == nil || !strings.Contains(err.Error(), "tell systemd") {
		t.Errorf("Ready without a manager = %v", err)
	}
}

// passed runs a child as systemd would: with descriptors from 3 on, and its own
// pid in LISTEN_PID.
func passed(t *testing.T, pid, fds string, files int) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "LISTEN_PID="+pid+" exec "+exe)
	cmd.Env = append(os.Environ(), asChild+"=1", "LISTEN_FDS="+fds, "LISTEN_FDNAMES=a:b")
	for i := range files {
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(short(t), strconv.Itoa(i)), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		f, err := ln.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestSocket(t *testing.T) {
	for name, tc := range map[string]struct {
		pid, fds string
		files    int
		want     string
	}{
		"one":              {"$$", "1", 1, `fd 3 inherited ""`},
		"of a parent":      {"1", "1", 1, "none"},
		"no pid":           {"", "1", 1, "none"},
		"none":             {"$$", "0", 0, "none"},
		"not said":         {"$$", "", 0, "none"},
		"two":              {"$$", "2", 2, "error socket of systemd: 2 were passed (a:b), one is expected | let the .socket unit have one ListenStream="},
		"no number":        {"$$", "many", 1, `error socket of systemd: LISTEN_FDS "many"`},
		"too many":         {"$$", "100000", 1, `error socket of systemd: LISTEN_FDS "100000"`},
		"negative":         {"$$", "-1", 1, `error socket of systemd: LISTEN_FDS "-1"`},
		"pid with letters": {"x", "1", 1, "none"},
	} {
		if got := passed(t, tc.pid, tc.fds, tc.files); !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
