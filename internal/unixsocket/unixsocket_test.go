package unixsocket_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"kms-plugin.io/internal/unixsocket"
	"kms-plugin.io/test/lack"
)

// private is a short directory of mode 0700.
func private(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "us")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func listen(t *testing.T, path string) *unixsocket.Listener {
	t.Helper()
	ln, err := unixsocket.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func TestListen(t *testing.T) {
	path := filepath.Join(private(t), "kms.sock")
	ln := listen(t, path)
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("socket is %v, %v; want mode 0600", info.Mode(), err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory holds %v, want the socket alone", entries)
	}
	go func() {
		if c, err := ln.Accept(); err == nil {
			c.Close()
		}
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after Close: %v, want no file", err)
	}
}

func TestLongestPath(t *testing.T) {
	dir := private(t)
	path := filepath.Join(dir, strings.Repeat("s", unixsocket.MaxPath-len(dir)-1))
	listen(t, path)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestCloseLeavesTheSocketOfANewerProcess(t *testing.T) {
	path := filepath.Join(private(t), "kms.sock")
	old := listen(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	listen(t, path)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the newer socket is gone: %v", err)
	}
}

func TestListenRefuses(t *testing.T) {
	open := private(t)
	if err := os.Chmod(open, 0o770); err != nil {
		t.Fatal(err)
	}
	theirs := private(t)
	if err := os.Chown(theirs, 4242, 4242); err != nil {
		t.Fatal(err)
	}
	below := filepath.Join(open, "sub")
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(private(t), "file")
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(private(t), "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	live := filepath.Join(private(t), "live")
	listen(t, live)
	for name, tc := range map[string]struct{ path, want, hint string }{
		"relative":       {"kms.sock", "must be absolute", "short"},
		"too long":       {"/tmp/" + strings.Repeat("x", 110), "at most 107", "short"},
		"no directory":   {"/nonexistent/kms.sock", "no such file", "install -d"},
		"open directory": {filepath.Join(open, "s"), "can be written by others", "chmod go-w"},
		"open ancestor":  {filepath.Join(below, "s"), "can be written by others", "chmod go-w " + open},
		"sticky itself":  {"/tmp/kms-test.sock", "can be written by others", "chmod"},
		"another's":      {filepath.Join(theirs, "s"), "belongs to another user", ""},
		"regular file":   {file, "no socket is in its place", "ls -l"},
		"symlink":        {link, "no socket is in its place", "ls -l"},
		"live server":    {live, "another server is live", "stop it"},
	} {
		_, err := unixsocket.Listen(tc.path)
		var e *unixsocket.Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(e.Hint(), tc.hint) {
			t.Errorf("%s: Listen = %v, want %q with hint %q", name, err, tc.want, tc.hint)
		}
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "keep" {
		t.Errorf("a refused path was changed: %v", err)
	}
}

func TestDeadSocketIsReplaced(t *testing.T) {
	path := filepath.Join(private(t), "kms.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	listen(t, path)
}

// serve runs a gRPC server that lets only allowed uids in.
func serve(t *testing.T, allowed []uint32, refused func(unixsocket.Peer, error)) string {
	t.Helper()
	path := filepath.Join(private(t), "kms.sock")
	srv := grpc.NewServer(grpc.Creds(unixsocket.NewPeerCredentials(allowed, refused)))
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go srv.Serve(listen(t, path))
	t.Cleanup(srv.Stop)
	return path
}

func TestPeerCredentials(t *testing.T) {
	path := serve(t, nil, func(p unixsocket.Peer, err error) { t.Errorf("our own uid %d was refused: %v", p.UID, err) })
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("call as our own uid: %v", err)
	}
}

// So many connections and no more; a place that is given up is taken again.
func TestConnectionsAreBounded(t *testing.T) {
	refused := make(chan error, 8)
	path := serve(t, nil, func(_ unixsocket.Peer, err error) { refused <- err })
	// The server speaks first, once the handshake has let the peer in.
	dial := func() (net.Conn, error) {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		return c, err
	}
	var first net.Conn
	for i := range unixsocket.MaxConnections {
		c, err := dial()
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if first == nil {
			first = c
		}
	}
	if _, err := dial(); err == nil {
		t.Error("one connection more than allowed was served")
	}
	if err := <-refused; !errors.Is(err, unixsocket.ErrFull) {
		t.Errorf("refused with %v, want ErrFull", err)
	}
	first.Close()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := dial(); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a place that was given up is not taken again")
		}
	}
}

// The umask of who starts the daemon does not matter: the socket is bound in a
// directory that only we can enter, and has its mode before it has its name.
func TestUmaskDoesNotMatter(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(private(t), "kms.sock")
	listen(t, path)
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v, %v; want 0600", info.Mode(), err)
	}
}

// The child runs as another uid that may open the file, but is not on the list.
func TestPeerOfAnotherUID(t *testing.T) {
	if path := os.Getenv("PEER_TEST_SOCKET"); path != "" {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("child: %v", err)
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(c); len(b) != 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("child: the server said %q, %v; want a closed connection", b, err)
		}
		return
	}
	if os.Geteuid() != 0 {
		lack.Skip(t, "only root can start a child as another user")
	}
	const uid = 65533
	refused := make(chan uint32, 8)
	path := serve(t, []uint32{0}, func(p unixsocket.Peer, _ error) { refused <- p.UID })
	// Wide open on purpose: the list must hold by itself.
	for _, p := range []string{path, filepath.Dir(path)} {
		if err := os.Chmod(p, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(filepath.Dir(path), "child")
	data, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(exe, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	child := exec.CommandContext(ctx, exe, "-test.run=^TestPeerOfAnotherUID$")
	child.Env = []string{"PEER_TEST_SOCKET=" + path}
	child.Dir = "/"
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("child: %v\n%s", err, out)
	}
	if got := <-refused; got != uid {
		t.Errorf("uid %d was refused, want %d", got, uid)
	}
}
