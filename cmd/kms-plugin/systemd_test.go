package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/pkg/keys/localfile"
)

// asProgram makes the test binary be kms-plugin.
const asProgram = "KMS_PLUGIN_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
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
	childLog     bytes.Buffer
	withoutFD    bool
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
	timeout := time.After(30 * time.Second)
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

func TestStatesForSystemd(t *testing.T) {
	m := newManager(t)
	m.withoutFD = true
	m.socket.Close() // unlinks: the child binds its own
	m.watchdogUSec = "200000"
	m.start()
	m.hears("READY=1\nSTATUS=serving")
	c, err := net.Dial("unix", m.dir+"/s")
	if err != nil {
		t.Fatalf("READY, but the socket does not accept: %v", err)
	}
	c.Close()
	m.hears("WATCHDOG=1")
	m.hears("WATCHDOG=1")
	if err := m.child.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	m.hears("RELOADING=1\nMONOTONIC_USEC=")
	m.hears("READY=1\nSTATUS=serving")
	m.configure("typo: 1\n")
	m.hears("RELOADING=1\nMONOTONIC_USEC=")
	m.hears("READY=1\nSTATUS=serving the last good configuration")
	m.configure("")
	m.hears("STATUS=serving")
	if err := m.child.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.hears("STOPPING=1")
	if err := m.child.Wait(); err != nil {
		t.Errorf("the child ended with %v", err)
	}
	m.child = nil
}

// While systemd holds the socket, the program is replaced under callers that never
// see a dial refused nor a call fail.
func TestNoDialIsRefusedAcrossRestarts(t *testing.T) {
	m := newManager(t)
	m.start()
	m.hears("READY=1")
	if !strings.Contains(m.childLog.String(), `"passed":true`) {
		t.Fatalf("the child did not take the socket:\n%s", &m.childLog)
	}
	socket := m.dir + "/s"
	var dials, refused, calls, failed atomic.Int64
	var firstFailure atomic.Value
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		dials.Add(1)
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil && ctx.Err() == nil {
			refused.Add(1)
			firstFailure.CompareAndSwap(nil, "dial: "+err.Error())
		}
		return c, err
	}
	// kube-apiserver: one connection, calls that wait for it.
	conn, err := grpc.NewClient("passthrough:///s", grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	kms := kmsapi.NewKeyManagementServiceClient(conn)
	status := func(ctx context.Context) error {
		r, err := kms.Status(ctx, &kmsapi.StatusRequest{})
		if err == nil && r.GetHealthz() != "ok" {
			err = fmt.Errorf("healthz %q", r.GetHealthz())
		}
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for status(t.Context()) != nil && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond) // polls
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			calls.Add(1)
			call, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			if err := status(call); err != nil {
				failed.Add(1)
				firstFailure.CompareAndSwap(nil, "call: "+err.Error())
			}
			cancel()
		}
	})
	wg.Go(func() { // and others, that dial all the time
		for ctx.Err() == nil {
			if c, err := dial(ctx, ""); err == nil {
				c.Close()
			}
			<-time.After(time.Millisecond) // polls
		}
	})
	for range 3 {
		before := calls.Load()
		m.ends()
		m.start()
		m.hears("READY=1")
		for calls.Load() < before+10 && time.Now().Before(deadline.Add(time.Minute)) {
			<-time.After(10 * time.Millisecond) // polls
		}
	}
	stop()
	wg.Wait()
	t.Logf("%d dials, %d calls across 3 restarts", dials.Load(), calls.Load())
	if refused.Load() > 0 || failed.Load() > 0 {
		t.Errorf("%d of %d dials were refused, %d of %d calls failed: %v", refused.Load(), dials.Load(), failed.Load(), calls.Load(), firstFailure.Load())
	}
	if calls.Load() < 30 {
		t.Errorf("%d calls only: the restarts were not seen through", calls.Load())
	}
	m.ends()
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the child removed a socket that is not its own: %v", err)
	}
}

// READY is about the socket. A KMS that is away, and a credential that is not to be
// had, keep no unit from starting.
func TestReadyWithoutKMS(t *testing.T) {
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/credentials")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	m := newManager(t)
	m.configure("")
	data, err := os.ReadFile(m.config)
	if err != nil {
		t.Fatal(err)
	}
	away := `awskms: {keyARN: "arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555", endpoint: "http://127.0.0.1:1"}`
	i := bytes.Index(data, []byte("localfile:"))
	if err := os.WriteFile(m.config, append(data[:i:i], away+"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.hears("READY=1")
	_, errs, code := command(t, "wait", "--socket", m.dir+"/s", "--timeout", "10s", "--listening")
	if code != 0 {
		t.Errorf("wait --listening: code %d, %s", code, errs)
	}
	_, errs, code = command(t, "wait", "--socket", m.dir+"/s", "--timeout", "2s")
	if code != 1 || !strings.Contains(errs, "does not serve after") {
		t.Errorf("wait: code %d, %s; want that it does not serve", code, errs)
	}
	m.ends()
}

func TestPassedSocketOfAnotherPath(t *testing.T) {
	m := newManager(t)
	data, err := os.ReadFile(m.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.config, bytes.Replace(data, []byte("/s}"), []byte("/other}"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	err = m.child.Wait()
	m.child = nil
	out := m.childLog.String()
	if err == nil || !strings.Contains(out, "which is another path") || !strings.Contains(out, "hint: make ListenStream=") {
		t.Errorf("the child ended with %v:\n%s", err, out)
	}
}
