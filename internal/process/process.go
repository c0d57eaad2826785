// Package process keeps the memory of the daemon out of files: it holds keys.
package process

import (
	"fmt"

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
