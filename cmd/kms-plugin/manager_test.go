package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"kms-plugin.io/pkg/keys/localfile"
)

// asProgram makes the test binary be kms-plugin.
const asProgram = "KMS_PLUGIN_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if path := os.Getenv(peerEnv); path != "" {
		dialAsPeer(path)
		return
	}
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// journal is a log that can be read while it is written.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) reset() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.b.Reset()
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// manager plays systemd for one service: it holds the socket, starts the program
// with it, and hears what the program says.
type manager struct {
	t            *testing.T
	dir, config  string
	socket       *net.UnixListener
	notify       *net.UnixConn
	said         chan string
	child        *exec.Cmd
	childLog     journal
	withoutFD    bool
	uid          int // of the child, 0: that of the test
	watchdogUSec string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "sm")
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{t: t, dir: dir, config: filepath.Join(dir, "config.yaml"), said: make(chan string, 1000)}
	t.Cleanup(func() {
		if m.child != nil {
			_ = m.child.Process.Kill()
			_ = m.child.Wait()
		}
		if t.Failed() {
			t.Logf("log of the child:\n%s", &m.childLog)
		}
		os.RemoveAll(dir)
	})
	keyset := filepath.Join(dir, "keyset")
	if err := localfile.Create(keyset); err != nil {
		t.Fatal(err)
	}
	m.configure("")
	if m.socket, err = net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s", Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.socket.Close() })
	if err := os.Chmod(dir+"/s", 0o600); err != nil {
		t.Fatal(err)
	}
	if m.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/n", Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.notify.Close() })
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := m.notify.Read(b)
			if err != nil {
				return
			}
			m.said <- string(b[:n])
		}
	}()
	return m
}

func (m *manager) configure(extra string) {
	m.t.Helper()
	data := fmt.Sprintf("apiVersion: kms-plugin.io/v1\nkind: KMSPluginConfiguration\nclusterID: c\nsocket: {path: %[1]s/s}\nstateDir: %[1]s\nlistenAddress: \"\"\n"+
		"reload: {interval: 100ms}\nkeys:\n- name: k\n  role: write\n  localfile: {path: %[1]s/keyset}\n", m.dir) + extra
	if err := os.WriteFile(m.config, []byte(data), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *manager) start() {
	m.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	// The shell knows the pid that the program will have.
	m.child = exec.Command("sh", "-c", "LISTEN_PID=$$ exec "+exe+" serve --config "+m.config)
	m.child.Env = append(os.Environ(), asProgram+"=1", "NOTIFY_SOCKET="+m.dir+"/n", "WATCHDOG_USEC="+m.watchdogUSec)
	if m.uid != 0 {
		m.child.Args[2], m.child.SysProcAttr = strings.Replace(m.child.Args[2], exe, programFor(m.t, m.dir), 1), as(m.uid)
	}
	m.child.Stdout, m.child.Stderr = &m.childLog, &m.childLog
	if !m.withoutFD {
		f, err := m.socket.File()
		if err != nil {
			m.t.Fatal(err)
		}
		defer f.Close()
		m.child.Env = append(m.child.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=kms")
		m.child.ExtraFiles = []*os.File{f}
	}
	if err := m.child.Start(); err != nil {
		m.t.Fatal(err)
	}
}

// hears waits until the child says something that begins so.
func (m *manager) hears(want string) {
	m.t.Helper()
	timeout := time.After(2 * time.Minute)
	for {
		select {
		case got := <-m.said:
			if strings.HasPrefix(got, want) {
				return
			}
		case <-timeout:
			m.t.Fatalf("the child never said %q", want)
		}
	}
}

// logs waits until the child's log, which is read behind it, has a text.
func (m *manager) logs(want string) {
	m.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !strings.Contains(m.childLog.String(), want); {
		if time.Now().After(deadline) {
			m.t.Fatalf("the child never logged %s", want)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// ends stops the child as systemd does; its exit code must be 0.
func (m *manager) ends() {
	m.t.Helper()
	if err := m.child.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Fatal(err)
	}
	if err := m.child.Wait(); err != nil {
		m.t.Errorf("the child ended with %v", err)
	}
	m.child = nil
}
