package regions

import (
	"context"
	"sync"
	"time"

	"kms-plugin.io/pkg/keys"
)

// A region goes away at the first failure, for the next call must not wait for it
// again, and comes back only after so many good answers in a row, this long after
// the last bad one: going back and forth would help nobody.
const (
	goodInARow = 3
	quiet      = 30 * time.Second
)

// place is one region with what its answers made of it.
type place struct {
	region keys.Region

	mu   sync.Mutex
	away bool
	good int // answers in a row, while away
	last time.Time
}

func (p *place) isAway() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.away
}

// noteCall learns from a call that was made for somebody. What a caller asks for
// must not decide where others go: only failures that another region may not have.
func (p *place) noteCall(err error, passKeyState bool) {
	switch c := keys.ClassOf(err); {
	case c == keys.ClassNone:
		p.answered()
	case c == keys.ClassOutage, c == keys.ClassKeyState && passKeyState:
		p.failed()
	}
}

// noteProbe learns from a canary: also a denial of access in one region moves the
// calls to one that allows it, if there is any.
func (p *place) noteProbe(err error, passKeyState bool) {
	switch keys.ClassOf(err) {
	case keys.ClassAuthorization, keys.ClassCredential:
		p.failed()
	default:
		p.noteCall(err, passKeyState)
	}
}

func (p *place) failed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away, p.good, p.last = true, 0, time.Now()
}

func (p *place) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.away {
		return
	}
	if p.good++; p.good >= goodInARow && time.Since(p.last) >= quiet {
		p.away = false
	}
}

// probed is one region as a prober asks it.
type probed struct {
	place        *place
	passKeyState bool
}

// Identity implements keys.KEK.
func (p probed) Identity() string { return p.place.region.KEK.Identity() }

// Wrap implements keys.KEK.
func (p probed) Wrap(ctx context.Context, plaintext keys.Secret, bound keys.Context) (keys.Wrapped, error) {
	w, err := p.place.region.KEK.Wrap(ctx, plaintext, bound)
	p.note(ctx, err)
	return w, err
}

// Unwrap implements keys.KEK.
func (p probed) Unwrap(ctx context.Context, blob []byte, bound keys.Context) (keys.Unwrapped, error) {
	u, err := p.place.region.KEK.Unwrap(ctx, blob, bound)
	p.note(ctx, err)
	return u, err
}

func (p probed) note(ctx context.Context, err error) {
	if ctx.Err() != context.Canceled {
		p.place.noteProbe(err, p.passKeyState)
	}
}
