package systemd

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// firstFD is the first descriptor that systemd passes (SD_LISTEN_FDS_START).
const firstFD = 3

// maxFDs bounds what is believed of LISTEN_FDS.
const maxFDs = 64

// ListenError is a passed socket that cannot be used.
type ListenError struct {
	Reason string
	Remedy string
}

func (e *ListenError) Error() string { return "socket of systemd: " + e.Reason }

// Hint is what to do about it.
func (e *ListenError) Hint() string { return e.Remedy }

// Socket is the one socket that systemd passed, nil if it passed none. The
// variables are unset, and the descriptor stays with this process: no helper that
// it starts may inherit what opens Secrets. Errors are *ListenError.
func Socket() (*os.File, error) {
	pid, fds, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // fails for an invalid name only
	}
	if fds == "" || pid != strconv.Itoa(os.Getpid()) { // meant for a parent
		return nil, nil
	}
	n, err := count(fds)
	if err != nil || n == 0 {
		return nil, err
	}
	var files []*os.File
	for fd := firstFD; fd < firstFD+n; fd++ {
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("LISTEN_FD_%d", fd)))
	}
	if n > 1 {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
		return nil, &ListenError{fmt.Sprintf("%d were passed (%s), one is expected", n, names), "let the .socket unit have one ListenStream="}
	}
	return files[0], nil
}

func count(fds string) (int, error) {
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxFDs {
		return 0, &ListenError{fmt.Sprintf("LISTEN_FDS %q is not a number of descriptors", fds), "start the service by systemd"}
	}
	return n, nil
}
