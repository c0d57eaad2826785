package custody

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"kms-plugin.io/pkg/keys"
)

const (
	// maxWaiting is how many requests may wait for a KMS, and maxQueued how many
	// for a place among them with a local KEK that nobody asks for yet. Together
	// they are half of plugin.MaxStreams, so that Status and what is answered from
	// memory finds a stream on the one connection. Each costs some 40 KiB.
	maxWaiting = 144
	maxQueued  = 48
	// stallLimit is how long a request above maxWaiting waits for a place while
	// the KMS answers nothing at all. In a black hole the streams above
	// maxWaiting turn over this fast.
	stallLimit = 400 * time.Millisecond
	// patientLimit is that for who asks for what others ask for, or needs a call by
	// right: the first answer after a start, with credential and TLS, may take longer.
	// It is below the time of a Status (3 s) that waits for a stream.
	patientLimit = 1200 * time.Millisecond
)

// gate bounds the requests that wait for a KMS.
type gate struct {
	places chan struct{}
	queued atomic.Int64
	moved  atomic.Int64 // Unix nanoseconds: last answer of a KMS, or first wait after idleness
	// dry says that those who wait already use up what may be asked for a while. Who
	// comes then and finds no place is refused at once: thousands that wait their time
	// out would keep Status from the streams of the connection they share.
	dry func() bool
}

func newGate(dry func() bool) *gate { return &gate{places: make(chan struct{}, maxWaiting), dry: dry} }

// progress notes that a KMS answered.
func (g *gate) progress() { g.moved.Store(time.Now().UnixNano()) }

// enter takes a place or fails with keys.ErrBusy; leave gives it back. Who is
// patient may always queue.
func (g *gate) enter(ctx context.Context, patient bool) error {
	if len(g.places) == 0 {
		g.progress() // the silence before the first of a crowd is not a stall
	}
	select {
	case g.places <- struct{}{}:
		return nil
	default:
	}
	if !patient {
		defer g.queued.Add(-1)
		if g.queued.Add(1) > maxQueued {
			return fmt.Errorf("%w: %d unknown local KEKs wait already", keys.ErrBusy, maxWaiting+maxQueued)
		}
	}
	return g.wait(ctx, patient)
}

// wait is for a place that another leaves.
func (g *gate) wait(ctx context.Context, patient bool) error {
	limit := stallLimit
	if patient {
		limit = patientLimit
	}
	for {
		if !patient && g.dry() { // others use up no tokens
			return fmt.Errorf("%w: %d wait already, and more unknown local KEKs came than %d a second", keys.ErrBusy, maxWaiting, unknownPerSecond)
		}
		left := limit - time.Since(time.Unix(0, g.moved.Load()))
		if left <= 0 {
			return fmt.Errorf("%w: %d wait already and it has not answered for %s", keys.ErrBusy, maxWaiting, limit)
		}
		timer := time.NewTimer(left)
		select {
		case g.places <- struct{}{}:
			timer.Stop()
			return nil
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", keys.ErrBusy, ctx.Err())
		case <-timer.C:
		}
	}
}

func (g *gate) leave() { <-g.places }
