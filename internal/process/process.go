// Package process sets up the daemon's own process: its memory stays out of
// files, and its runtime is tuned for many tiny calls.
package process

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// NoCore keeps this process from ever leaving a core file, and other processes
// of the same user from reading its memory (prctl(2), PR_SET_DUMPABLE).
func NoCore() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid reading of memory: %w", err)
	}
	return nil
}

// Tune sets the runtime for the work there is: calls of some microseconds over
// one connection. On one processor they cost no wake-up of another thread. The
// collector stays as it is: a lazier one saves little time and breaks the bound
// on memory in a cold start, a memory limit breaks a direct-mode one. An
// operator's GOMAXPROCS wins. Measured in docs/performance.md.
func Tune() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	if os.Getenv("GOGC") == "" {
		tuneCollector()
	}
}
