package unixsocket_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/unixsocket"
	"kms-plugin.io/test/lack"
)

// hold is what systemd does: it binds, keeps the socket, and passes it on.
func hold(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return ln
}

func file(t *testing.T, ln interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAdopt(t *testing.T) {
	path := filepath.Join(private(t), "kms.sock")
	held := hold(t, path)
	for range 2 { // one process after the other
		a, err := unixsocket.Adopt(file(t, held), path)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the look at the file, and this one
			got, err := a.Accept()
			if err != nil {
				t.Fatal(err)
			}
			got.Close()
		}
		c.Close()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Fatalf("after Close: %v, want that the file stays", err)
		}
		waiting, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("dial between two processes: %v", err)
		}
		if c, err := held.Accept(); err != nil { // empties the queue
			t.Fatal(err)
		} else {
			c.Close()
		}
		waiting.Close()
	}
}

// After Pause nobody is taken, nobody refused.
func TestPause(t *testing.T) {
	path := filepath.Join(private(t), "kms.sock")
	held := hold(t, path)
	a, err := unixsocket.Adopt(file(t, held), path)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := a.Accept(); err != nil { // the look at the file
		t.Fatal(err)
	} else {
		c.Close()
	}
	ended := make(chan error, 1)
	go func() {
		_, err := a.Accept()
		ended <- err
	}()
	a.Pause()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	select {
	case err := <-ended:
		t.Fatalf("Accept ended with %v before Close", err)
	default:
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, want net.ErrClosed", err)
	}
	if next, err := held.Accept(); err != nil { // who dialled meanwhile is there for the next
		t.Error(err)
	} else {
		next.Close()
	}
}

func TestAdoptBehindALink(t *testing.T) {
	dir := private(t)
	link := filepath.Join(private(t), "l")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	a, err := unixsocket.Adopt(file(t, hold(t, filepath.Join(dir, "s"))), filepath.Join(link, "s"))
	if err != nil {
		t.Fatalf("Adopt of /run by /var/run = %v", err)
	}
	a.Close()
}

func TestAdoptRefuses(t *testing.T) {
	type got struct {
		f    *os.File
		path string
	}
	for name, tc := range map[string]struct {
		make       func(t *testing.T) got
		want, hint string
	}{
		"another path": {func(t *testing.T) got {
			dir := private(t)
			return got{file(t, hold(t, filepath.Join(dir, "other"))), filepath.Join(dir, "s")}
		}, `/other", which is another path`, "ListenStream= of the .socket unit and socket.path"},
		"TCP": {func(t *testing.T) got {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			return got{file(t, ln.(*net.TCPListener)), filepath.Join(private(t), "s")}
		}, "not a unix socket", "ListenStream="},
		"no socket": {func(t *testing.T) got {
			f, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			return got{f, filepath.Join(private(t), "s")}
		}, "not a unix socket", "ListenStream="},
		"a connection": {func(t *testing.T) got {
			path := filepath.Join(private(t), "s")
			hold(t, path)
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return got{file(t, c.(*net.UnixConn)), path}
		}, "not a listening stream socket", "Accept=no"},
		"datagrams": {func(t *testing.T) got {
			path := filepath.Join(private(t), "s")
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return got{file(t, c), path}
		}, "not a listening stream socket", "ListenStream="},
		"abstract": {func(t *testing.T) got {
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@kms-plugin-adopt", Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			return got{file(t, ln), filepath.Join(private(t), "s")}
		}, "has no path", "ListenStream="},
		"open directory": {func(t *testing.T) got {
			dir := private(t)
			if err := os.Chmod(dir, 0o770); err != nil {
				t.Fatal(err)
			}
			return got{file(t, hold(t, filepath.Join(dir, "s"))), filepath.Join(dir, "s")}
		}, "can be written by others", "chmod go-w"},
		"open socket": {func(t *testing.T) got {
			path := filepath.Join(private(t), "s")
			f := file(t, hold(t, path))
			if err := os.Chmod(path, 0o666); err != nil {
				t.Fatal(err)
			}
			return got{f, path}
		}, "others may open it (mode 0666)", "SocketMode=0600"},
		"another's socket": {func(t *testing.T) got {
			if os.Geteuid() != 0 {
				lack.Skip(t, "only root can give a file away")
			}
			path := filepath.Join(private(t), "s")
			f := file(t, hold(t, path))
			if err := os.Chown(path, 4242, 0); err != nil {
				t.Fatal(err)
			}
			return got{f, path}
		}, "belongs to another user", "SocketUser="},
		"file is gone": {func(t *testing.T) got {
			path := filepath.Join(private(t), "s")
			f := file(t, hold(t, path))
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			return got{f, path}
		}, "its file is gone", "systemctl restart"},
		"a file in its place": {func(t *testing.T) got {
			path := filepath.Join(private(t), "s")
			f := file(t, hold(t, path))
			if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			return got{f, path}
		}, "no socket is in its place", "ls -l"},
		"a dead socket in its place": {func(t *testing.T) got {
			path := filepath.Join(private(t), "s")
			f := file(t, hold(t, path))
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			dead := hold(t, path)
			dead.SetUnlinkOnClose(false)
			dead.Close()
			return got{f, path}
		}, "dead socket of somebody else", "systemctl restart"},
	} {
		t.Run(name, func(t *testing.T) {
			g := tc.make(t)
			_, err := unixsocket.Adopt(g.f, g.path)
			var e *unixsocket.Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(e.Hint(), tc.hint) {
				t.Errorf("Adopt = %v, want %q with hint %q", err, tc.want, tc.hint)
			}
		})
	}
}
