// Package unixsocket opens the socket that kube-apiserver dials: who can open it
// can decrypt every Secret, so the directory is checked, the mode is right from
// the first instant, and a live server is never pushed aside. It must not know
// gRPC services or keys.
package unixsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// MaxPath is how many bytes a socket path may have (unix(7), sockaddr_un).
const MaxPath = 107

const (
	mode        = 0o600
	dialTimeout = time.Second
)

// Error is a socket that cannot be opened safely.
type Error struct {
	Path   string
	Reason string
	Remedy string
}

func (e *Error) Error() string { return fmt.Sprintf("socket %q: %s", e.Path, e.Reason) }

// Hint is what to do about it.
func (e *Error) Hint() string { return e.Remedy }

// Listener is a net.Listener that removes its socket file on Close, but only if
// the file is still its own: a newer process may have put its own there.
type Listener struct {
	*net.UnixListener
	path string
	own  fs.FileInfo
}

// Listen binds in a private directory beside path and renames the socket into
// place: it appears complete, with mode 0600, and replaces a dead socket file
// atomically. Errors are *Error.
func Listen(path string) (*Listener, error) {
	if !filepath.IsAbs(path) || len(path) > MaxPath {
		return nil, &Error{path, fmt.Sprintf("the path must be absolute and have at most %d bytes", MaxPath), "choose a short one such as /run/kms-plugin/kms.sock"}
	}
	if err := checkDirectory(path); err != nil {
		return nil, err
	}
	if err := checkPlace(path); err != nil {
		return nil, err
	}
	ln, err := bind(path)
	if err != nil {
		return nil, &Error{path, err.Error(), "look at the owner and the free space of " + filepath.Dir(path)}
	}
	own, err := os.Lstat(path)
	if err != nil {
		_ = ln.Close()
		return nil, &Error{path, err.Error(), ""}
	}
	return &Listener{UnixListener: ln, path: path, own: own}, nil
}

func bind(path string) (*net.UnixListener, error) {
	// A short name: the temporary path must fit into sockaddr_un too.
	private, err := os.MkdirTemp(filepath.Dir(path), ".k")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private)
	first := filepath.Join(private, "s")
	ln, err := listenIn(private, first)
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(first, mode), os.Rename(first, path)); err != nil {
		_ = ln.Close()
		return nil, err
	}
	return ln, nil
}

// listenIn binds through /proc/self/fd where the private path would be too long.
func listenIn(private, first string) (*net.UnixListener, error) {
	if len(first) <= MaxPath {
		return net.ListenUnix("unix", &net.UnixAddr{Name: first, Net: "unix"})
	}
	d, err := os.Open(private)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/s", d.Fd()), Net: "unix"})
}

// CheckDirectory tells whether Listen would accept the directory of a path for the
// user of this process. Errors are *Error.
func CheckDirectory(path string) error { return checkDirectory(path) }

// checkDirectory demands a parent that only we (or root) can write, and no
// ancestor in which somebody else could swap it.
func checkDirectory(path string) error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return &Error{path, fmt.Sprintf("directory %q: %v", filepath.Dir(path), cause(err)), "make it first: install -d -m 0700 " + filepath.Dir(path)}
	}
	for d, parent := dir, true; ; d, parent = filepath.Dir(d), false {
		info, err := os.Stat(d)
		if err != nil {
			return &Error{path, fmt.Sprintf("directory %q: %v", d, cause(err)), ""}
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Uid != 0 && st.Uid != uint32(os.Geteuid()) {
			return &Error{path, fmt.Sprintf("directory %q belongs to another user", d), "use a directory of root or of the user that kms-plugin runs as"}
		}
		sticky := info.Mode()&fs.ModeSticky != 0 && !parent
		if info.Mode().Perm()&0o022 != 0 && !sticky {
			return &Error{path, fmt.Sprintf("directory %q can be written by others (mode %#o)", d, info.Mode().Perm()), "chmod go-w " + d}
		}
		if d == filepath.Dir(d) {
			return nil
		}
	}
}

// checkPlace refuses to replace anything but a socket that nobody serves.
func checkPlace(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return &Error{path, cause(err).Error(), ""}
	case info.Mode().Type() != fs.ModeSocket:
		return &Error{path, "something that is no socket is in its place", "look at it and move it away: ls -l " + path}
	}
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		_ = c.Close()
		return &Error{path, "another server is live on it", "stop it first, or give this one a path of its own"}
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
		return &Error{path, fmt.Sprintf("whether a server is live on it cannot be told: %v", cause(err)), ""}
	}
	return nil
}

// Close stops listening and removes the socket file if it is still ours.
func (l *Listener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.own) {
		_ = os.Remove(l.path) // a stale file is replaced at the next start
	}
	return l.UnixListener.Close()
}

func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
