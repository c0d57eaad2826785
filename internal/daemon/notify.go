package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"kms-plugin.io/internal/systemd"
)

// notifier tells systemd how we are. READY is sent when the socket accepts, and
// waits for no KMS: docs/design/0003-systemd.md says why.
type notifier struct {
	to  *systemd.Notifier
	log *slog.Logger

	mu      sync.Mutex
	differs bool // the file on disk is not in force
	serving bool // READY was sent
	during  bool // RELOADING was sent, READY not yet
}

func (n *notifier) sent(err error) {
	if err != nil {
		n.log.Warn("systemd is not told", "error", err.Error())
	}
}

func (n *notifier) ready() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.serving = true
	n.sent(n.to.Ready(n.text()))
}

// text is the line of systemctl status; the lock is held.
func (n *notifier) text() string {
	if n.differs {
		return "serving the last good configuration: the one on disk is not in force, see the log"
	}
	return "serving"
}

func (n *notifier) stopping() { n.sent(n.to.Stopping()) }

// reloading may be called again before reloaded.
func (n *notifier) reloading() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.during {
		n.during = true
		n.sent(n.to.Reloading())
	}
}

// reloaded ends what reloading began, well or not: the service serves.
func (n *notifier) reloaded() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.during {
		n.during = false
		n.sent(n.to.Ready(n.text()))
	}
}

func (n *notifier) diskDiffers(differs bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	changed := n.differs != differs
	n.differs = differs
	if changed && n.serving && !n.during {
		n.sent(n.to.Status(n.text()))
	}
}

// heartbeat feeds the watchdog as long as look returns: it reads all state behind
// its locks. A KMS that is away stops nothing of that, and must never restart us.
func (n *notifier) heartbeat(ctx context.Context, look func()) {
	every := n.to.WatchdogInterval()
	if every <= 0 {
		return
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		look()
		n.sent(n.to.Alive())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
