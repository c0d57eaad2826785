package unixsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Adopted is a listening socket that somebody else holds, and keeps open while
// this process is replaced: nobody who dials meanwhile is refused, they wait.
// Close leaves the socket file where it is.
type Adopted struct {
	*net.UnixListener
	paused chan struct{}
	closed chan struct{}
	pause  sync.Once
	close  sync.Once
}

// Adopt serves on a socket that was passed to this process, if it is the one of
// path and as well kept as one that Listen makes. It takes f. Errors are *Error.
func Adopt(f *os.File, path string) (*Adopted, error) {
	defer f.Close() // the listener has a descriptor of its own
	if err := passed(f, path); err != nil {
		return nil, err
	}
	if err := checkDirectory(path); err != nil {
		return nil, err
	}
	if err := checkFile(path); err != nil {
		return nil, err
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, &Error{path, fmt.Sprintf("the socket passed by systemd: %v", err), ""}
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		return nil, &Error{path, "the socket passed by systemd is not a unix socket", listenStream(path)}
	}
	u.SetUnlinkOnClose(false)
	return &Adopted{UnixListener: u, paused: make(chan struct{}), closed: make(chan struct{})}, nil
}

func listenStream(path string) string { return "write ListenStream=" + path + " into the .socket unit" }

// passed checks what kind of socket it is, and where it is bound.
func passed(f *os.File, path string) error {
	fd := int(f.Fd())
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_UNIX {
		return &Error{path, "what systemd passed is not a unix socket", listenStream(path)}
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	listens, lerr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || lerr != nil || kind != unix.SOCK_STREAM || listens == 0 {
		return &Error{path, "what systemd passed is not a listening stream socket", listenStream(path) + ", with Accept=no"}
	}
	addr, err := unix.Getsockname(fd)
	bound, ok := addr.(*unix.SockaddrUnix)
	if err != nil || !ok || !filepath.IsAbs(bound.Name) {
		return &Error{path, "the socket that systemd passed has no path", listenStream(path)}
	}
	if real(bound.Name) != real(path) {
		return &Error{path, fmt.Sprintf("systemd passed the socket %q, which is another path", bound.Name), "make ListenStream= of the .socket unit and socket.path of the configuration the same"}
	}
	return nil
}

// real takes symbolic links out of the directory: /var/run is /run.
func real(path string) string {
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	return filepath.Clean(path)
}

// checkFile demands of somebody else's socket file what ours has.
func checkFile(path string) error {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return &Error{path, fmt.Sprintf("systemd holds it, but its file is gone: %v", cause(err)), "systemctl restart the .socket unit"}
	case info.Mode().Type() != fs.ModeSocket:
		return &Error{path, "something that is no socket is in its place", "look at it and move it away: ls -l " + path}
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != 0 && st.Uid != uint32(os.Geteuid()) {
		return &Error{path, "it belongs to another user", "let SocketUser= of the .socket unit be root or the user that kms-plugin runs as"}
	}
	if info.Mode().Perm()&0o077 != 0 {
		return &Error{path, fmt.Sprintf("others may open it (mode %#o)", info.Mode().Perm()), "write SocketMode=0600 into the .socket unit"}
	}
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		return c.Close()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return &Error{path, "its file is a dead socket of somebody else: who dials it is refused", "systemctl restart the .socket unit"}
	}
	return nil // a full queue is no reason not to begin to empty it
}

// Accept implements net.Listener.
func (a *Adopted) Accept() (net.Conn, error) {
	c, err := a.UnixListener.Accept()
	if err == nil {
		return c, nil
	}
	select {
	case <-a.paused:
		<-a.closed
		return nil, net.ErrClosed
	default:
		return nil, err
	}
}

// Pause takes no more connections; those that come wait for the next process.
// Without it a server that begins to stop would take some and close them.
func (a *Adopted) Pause() {
	a.pause.Do(func() {
		close(a.paused)
		_ = a.SetDeadline(time.Unix(1, 0)) // fails only if it is closed
	})
}

// Close implements net.Listener. The socket stays open for its holder.
func (a *Adopted) Close() error {
	a.close.Do(func() { close(a.closed) })
	return a.UnixListener.Close()
}
