// Package systemd is how a service and systemd speak to each other: states by
// NOTIFY_SOCKET (sd_notify(3)), and a socket that systemd holds, by LISTEN_FDS
// (sd_listen_fds(3)). It must not know what the service does.
package systemd

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sendTimeout bounds a message: a manager that does not read must not stop what
// it manages.
const sendTimeout = time.Second

// Notifier tells systemd the state of the service. A nil one tells nobody. Safe
// for concurrent use.
type Notifier struct {
	addr     string
	watchdog time.Duration

	mu   sync.Mutex
	conn net.Conn // nil: not connected
}

// FromEnvironment finds the manager that started this process, nil if it wants no
// messages. The variables are unset: a helper that this process starts must not
// speak for it.
func FromEnvironment() (*Notifier, error) {
	addr, usec, pid := os.Getenv("NOTIFY_SOCKET"), os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	if addr == "" {
		return nil, nil
	}
	if !strings.HasPrefix(addr, "/") && !strings.HasPrefix(addr, "@") {
		return nil, fmt.Errorf("NOTIFY_SOCKET %q is neither a path nor an abstract socket", addr)
	}
	n := &Notifier{addr: addr}
	// Connected now, for a process that denies itself files and abstract sockets
	// later may go on to use what it has. A failure is told by the first message.
	n.conn, _ = net.DialTimeout("unixgram", addr, sendTimeout) // #nosec G704 -- named by who started us
	if usec == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return n, nil
	}
	us, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || us <= 0 || us > int64(24*time.Hour/time.Microsecond) {
		return nil, fmt.Errorf("WATCHDOG_USEC %q is not a number of microseconds up to a day", usec)
	}
	n.watchdog = time.Duration(us) * time.Microsecond
	return n, nil
}

// WatchdogInterval is how often Alive must be sent, 0 if nobody waits for it: half
// of what the manager waits (sd_watchdog_enabled(3)).
func (n *Notifier) WatchdogInterval() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog / 2
}

// Ready says that the service serves, and what a person should read of it.
func (n *Notifier) Ready(status string) error {
	return n.send("READY=1\nSTATUS=" + oneLine(status))
}

// Status is what a person should read.
func (n *Notifier) Status(status string) error { return n.send("STATUS=" + oneLine(status)) }

// Stopping says that the service ends by itself or as asked.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1") }

// Alive is the heartbeat of the watchdog.
func (n *Notifier) Alive() error { return n.send("WATCHDOG=1") }

// Reloading begins a reload, which Ready ends. The time tells systemd that it is
// an answer to its own request (Type=notify-reload).
func (n *Notifier) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	return n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

func (n *Notifier) send(message string) error {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil && write(n.conn, message) == nil {
		return nil
	}
	// The manager bound its socket again, or was not there.
	c, err := net.DialTimeout("unixgram", n.addr, sendTimeout)
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	if n.conn != nil {
		_ = n.conn.Close() // of a socket that is gone
	}
	n.conn = c
	if err := write(c, message); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

func write(c net.Conn, message string) error {
	err := c.SetWriteDeadline(time.Now().Add(sendTimeout))
	if err == nil {
		_, err = c.Write([]byte(message))
	}
	return err
}

// oneLine keeps a text from being taken for a second assignment.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
