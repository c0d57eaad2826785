// Package boottime measures elapsed time that includes the time a machine was
// suspended and that no step of the wall clock can change (CLOCK_BOOTTIME,
// clock_gettime(2)). Limits on how long a key may be used without news from its
// KMS are counted on it.
package boottime

import (
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Clock counts from its creation. It runs on the runtime's monotonic clock plus
// the time suspended since, so that testing/synctest can drive it. Safe for
// concurrent use.
type Clock struct {
	start     time.Time
	suspended time.Duration // at start
	looked    atomic.Int64  // when the suspension was last looked at, on this clock
	slept     atomic.Int64  // the time suspended since start, as of then
}

// lookEvery bounds how late a suspension is noticed. Looking costs two system
// calls, and every RPC asks for the time.
const lookEvery = time.Second

// New starts a clock.
func New() *Clock { return &Clock{start: time.Now(), suspended: suspended()} }

// Now is the time since New, at most a second behind after a suspension. It
// never goes backwards.
func (c *Clock) Now() time.Duration {
	awake := time.Since(c.start)
	if looked := c.looked.Load(); awake-time.Duration(looked) >= lookEvery && c.looked.CompareAndSwap(looked, int64(awake)) {
		if slept := suspended() - c.suspended; int64(slept) > c.slept.Load() {
			c.slept.Store(int64(slept))
		}
	}
	return awake + time.Duration(c.slept.Load())
}

// suspended is how long the machine slept since boot.
func suspended() time.Duration {
	d := read(unix.CLOCK_BOOTTIME) - read(unix.CLOCK_MONOTONIC)
	return d.Truncate(time.Millisecond) // the two readings are not one instant
}

func read(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// Stamp is a point in time that survives a restart of the process.
type Stamp struct {
	Wall   time.Time     `json:"wall"`
	BootID string        `json:"bootID,omitempty"`
	Boot   time.Duration `json:"boot,omitempty"` // nanoseconds since boot
}

// Take reads the stamp of now.
func Take() Stamp {
	return Stamp{Wall: time.Now().UTC().Round(0), BootID: bootID(), Boot: read(unix.CLOCK_BOOTTIME)}
}

// Elapsed is the time since the stamp: by boot time within the same boot, else
// by the wall clock and never negative.
func (s Stamp) Elapsed() time.Duration {
	if now := read(unix.CLOCK_BOOTTIME); s.BootID != "" && s.BootID == bootID() && now >= s.Boot {
		return now - s.Boot
	}
	return max(0, time.Since(s.Wall))
}

// bootID is read once: it cannot change while this process lives, and later the
// file may not open any more (package harden).
var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})
