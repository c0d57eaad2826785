package custody

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"kms-plugin.io/pkg/keys"
)

const (
	// maxWaiting is how many requests may wait for a KMS. It is below
	// plugin.MaxStreams, so that Status and everything answered from memory
	// always finds a stream on the API server's one connection.
	maxWaiting = 192
	// stallLimit is how long a request above maxWaiting waits for a place while
	// the KMS answers nothing at all. In a black hole the streams above
	// maxWaiting turn over this fast; while answers come in, nobody is refused.
	stallLimit = 400 * time.Millisecond
)

// gate bounds the requests that wait for a KMS.
type gate struct {
	places chan struct{}
	moved  atomic.Int64 // Unix nanoseconds: last answer of a KMS, or first wait after idleness
}

func newGate() *gate { return &gate{places: make(chan struct{}, maxWaiting)} }

// progress notes that a KMS answered.
func (g *gate) progress() { g.moved.Store(time.Now().UnixNano()) }

// enter takes a place or fails with keys.ErrBusy; leave gives it back.
func (g *gate) enter(ctx context.Context) error {
	if len(g.places) == 0 {
		g.progress() // the silence before the first of a crowd is not a stall
	}
	select {
	case g.places <- struct{}{}:
		return nil
	default:
	}
	for {
		left := stallLimit - time.Since(time.Unix(0, g.moved.Load()))
		if left <= 0 {
			return fmt.Errorf("%w: %d wait already and it has not answered for %s", keys.ErrBusy, maxWaiting, stallLimit)
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
