//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// killed starts kmsctl and kills it at the moment in which it has printed what. It returns
// all that was printed.
func (c *cluster) killed(what string, args ...string) string {
	c.t.Helper()
	return c.killedAfter(what, func() {}, args...)
}

// killedProving kills `rotate run` between its last write and its proof. Where the machine
// was too slow to hit that, it tries again: a run with nothing to do goes through it too.
func (x *trio) killedProving(more ...string) {
	x.t.Helper()
	var log string
	for range 5 {
		killed := false
		log, killed = x.killOnce("were written again by patches", func() {}, x.rotateArgs(more...)...)
		if killed && !strings.Contains(log, "prove: at revision") {
			return
		}
	}
	x.t.Errorf("it was never killed in its proof: %s", log)
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
	log, killed := c.killOnce(what, then, args...)
	if !killed {
		c.t.Fatalf("it ended before it was killed: %s", log)
	}
	return log
}

// killOnce says whether it was killed: it may have ended before.
func (c *cluster) killOnce(what string, then func(), args ...string) (log string, killed bool) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), bin.Kmsctl, args...)
	out := &trigger{what: what, seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it ended is looked at below
	}()
	select {
	case <-out.seen:
		then()
	case <-ended:
	case <-time.After(5 * time.Minute):
		c.t.Errorf("it has not printed %q", what)
	}
	_ = cmd.Process.Kill()
	<-ended
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	return out.b.String(), ok && status.Signaled() && status.Signal() == syscall.SIGKILL
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
