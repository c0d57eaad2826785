package systemd

import (
	"strings"
	"testing"
	"time"
)

// What the environment may hold for sd_notify and sd_listen_fds.
func FuzzEnvironment(f *testing.F) {
	f.Add("/run/systemd/notify", "30000000", "", "1")
	f.Add("@abstract", "-1", "1", "64")
	f.Add("relative", "9223372036854775807", "x", "65")
	f.Fuzz(func(t *testing.T, addr, usec, pid, fds string) {
		if strings.ContainsRune(addr+usec+pid, 0) {
			return // no environment holds one
		}
		t.Setenv("NOTIFY_SOCKET", addr)
		t.Setenv("WATCHDOG_USEC", usec)
		t.Setenv("WATCHDOG_PID", pid)
		n, err := FromEnvironment()
		if err == nil && (n == nil) != (addr == "") {
			t.Fatalf("NOTIFY_SOCKET %q: %v", addr, n)
		}
		if every := n.WatchdogInterval(); every < 0 || every > 12*time.Hour {
			t.Fatalf("WATCHDOG_USEC %q: every %s", usec, every)
		}
		if c, err := count(fds); err == nil && (c < 0 || c > maxFDs) {
			t.Fatalf("LISTEN_FDS %q: %d", fds, c)
		}
	})
}
