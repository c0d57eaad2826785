// Package boottime measures elapsed time that includes the time a machine was
// suspended and that no step of the wall clock can change (CLOCK_BOOTTIME,
// clock_gettime(2)). Limits on how long a key may be used without news from its
// KMS are counted on it.
package boottime

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock counts from its creation. It runs on the runtime's monotonic clock plus
// the time suspended since, so that testing/synctest can drive it.
type Clock struct {
	start     time.Time
	suspended time.Duration
}

// New starts a clock.
func New() *Clock { return &Clock{start: time.Now(), suspended: suspended()} }

// Now is the time since New. It never goes backwards.
func (c *Clock) Now() time.Duration {
	return time.Since(c.start) + suspended() - c.suspended
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

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
