// Package process tunes the daemon's own process for many tiny calls. What the
// process denies itself is a matter of package harden.
package process

import (
	"os"
	"runtime"
)

// Tune sets the runtime for the work there is: calls of some microseconds over
// one connection. On one processor they cost no wake-up of another thread. A lazier
// collector saves little time and breaks the bound on memory in a cold start, a
// memory limit breaks a direct-mode one. An
// operator's GOMAXPROCS wins. Measured in docs/performance.md.
func Tune() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	if os.Getenv("GOGC") == "" {
		tuneCollector()
	}
}
