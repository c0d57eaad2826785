//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// killed starts kmsctl and kills it at the moment in which it has printed what. It returns
// all that was printed.
func (c *cluster) killed(what string, args ...string) string {
	c.t.Helper()
	return c.killedAfter(what, func() {}, args...)
}

// killedWriting kills `rotate run` in the middle: it has brought 500 objects to the key_id.
func (x *trio) killedWriting(id string, more ...string) {
	x.t.Helper()
	before := x.onKey(id)
	x.killedAfter("converge: all 3", func() {
		x.within(90*time.Second, "it writes", func(context.Context) error {
			if n := x.onKey(id) - before; n < 500 {
				return fmt.Errorf("%d written", n)
			}
			return nil
		})
	}, x.rotateArgs(more...)...)
}

func (c *cluster) killedAfter(what string, then func(), args ...string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), bin.Kmsctl, args...)
	log := &trigger{what: what, seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	select {
	case <-log.seen:
		then()
	case <-time.After(3 * time.Minute):
		c.t.Errorf("it has not printed %q", what)
	}
	_ = cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		c.t.Fatalf("it ended before it was killed: %s", log.b.String())
	}
	return log.b.String()
}

// trigger keeps what a command prints and tells when it has printed what.
type trigger struct {
	what string
	seen chan struct{}
	once sync.Once
	b    bytes.Buffer
}

func (l *trigger) Write(p []byte) (int, error) {
	n, err := l.b.Write(p)
	if strings.Contains(l.b.String(), l.what) {
		l.once.Do(func() { close(l.seen) })
	}
	return n, err
}
