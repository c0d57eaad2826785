// Package regions makes one KEK of the same key in several regions. Calls go to
// the first region that is not away, and on to the next one inside the caller's
// deadline when one does not answer. It must not know any provider, and judges no
// key: a denial is handed back, never tried elsewhere.
package regions

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"kms-plugin.io/pkg/keys"
)

// Limits of a call.
const (
	// rounds through all regions, when none answers and there is time.
	rounds      = 2
	betweenRuns = 100 * time.Millisecond
	// minShare of time is left for a region, or the error at hand is better.
	minShare = 50 * time.Millisecond
)

// KEK implements keys.Regional. Safe for concurrent use.
type KEK struct {
	places       []*place
	passKeyState bool
}

var _ keys.Regional = (*KEK)(nil)

// New joins the regions of one key, in order of preference. With QuorumAll a
// region where the key is disabled or gone is passed over like one that does not
// answer.
func New(q keys.Quorum, in ...keys.Region) (*KEK, error) {
	if len(in) < 2 {
		return nil, fmt.Errorf("%d regions are no choice", len(in))
	}
	k := &KEK{passKeyState: q == keys.QuorumAll}
	for _, r := range in {
		if r.KEK.Identity() != in[0].KEK.Identity() {
			return nil, fmt.Errorf("%q in region %s is another key than %q in region %s", r.KEK.Identity(), r.Name, in[0].KEK.Identity(), in[0].Name)
		}
		k.places = append(k.places, &place{region: r})
	}
	return k, nil
}

// Identity implements keys.KEK.
func (k *KEK) Identity() string { return k.places[0].region.KEK.Identity() }

// Wrap implements keys.KEK.
func (k *KEK) Wrap(ctx context.Context, plaintext keys.Secret, bound keys.Context) (out keys.Wrapped, err error) {
	err = k.call(ctx, keys.OpWrap, func(ctx context.Context, in keys.KEK) (err error) {
		out, err = in.Wrap(ctx, plaintext, bound)
		return err
	})
	return out, err
}

// Unwrap implements keys.KEK.
func (k *KEK) Unwrap(ctx context.Context, blob []byte, bound keys.Context) (out keys.Unwrapped, err error) {
	err = k.call(ctx, keys.OpUnwrap, func(ctx context.Context, in keys.KEK) (err error) {
		out, err = in.Unwrap(ctx, blob, bound)
		return err
	})
	return out, err
}

// Regions implements keys.Regional.
func (k *KEK) Regions() []keys.Region {
	out := make([]keys.Region, 0, len(k.places))
	for _, p := range k.places {
		out = append(out, keys.Region{Name: p.region.Name, KEK: probed{p, k.passKeyState}})
	}
	return out
}

// InUse implements keys.Regional.
func (k *KEK) InUse() string { return k.order()[0].region.Name }

// order is where to ask: what is away comes last, for want of better.
func (k *KEK) order() []*place {
	var out, away []*place
	for _, p := range k.places {
		if p.isAway() {
			away = append(away, p)
		} else {
			out = append(out, p)
		}
	}
	return append(out, away...)
}

// call asks one region after the other until one answers, be it with a denial.
func (k *KEK) call(ctx context.Context, op keys.Op, do func(context.Context, keys.KEK) error) error {
	var failed []error
	for round := range rounds {
		if round > 0 && !pause(ctx, betweenRuns) {
			break
		}
		order := k.order()
		for n, p := range order {
			part, cancel, enough := share(ctx, len(order)-n)
			if !enough && len(failed) > 0 {
				cancel()
				return k.join(op, failed)
			}
			err := do(part, p.region.KEK)
			cancel()
			if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
				return err
			}
			p.noteCall(err, k.passKeyState)
			if !k.passes(err) {
				return err
			}
			failed = append(failed, fmt.Errorf("region %s: %w", p.region.Name, err))
		}
	}
	return k.join(op, failed)
}

// passes says whether another region may answer otherwise. A denial of access
// would be evaded there, and a damaged blob is damaged everywhere.
func (k *KEK) passes(err error) bool {
	c := keys.ClassOf(err)
	return c == keys.ClassOutage || c == keys.ClassKeyState && k.passKeyState
}

// join is the error of a call that no region answered. It is an outage as long
// as one region may yet serve.
func (k *KEK) join(op keys.Op, failed []error) error {
	e := &keys.Error{Class: keys.ClassKeyState, Op: op, Key: k.Identity()}
	var texts []string
	for i, err := range failed {
		var one *keys.Error
		if errors.As(err, &one) && (i == 0 || one.Class < e.Class) {
			e.Code, e.Region, e.RequestID, e.Hint = one.Code, one.Region, one.RequestID, one.Hint
		}
		e.Class = min(e.Class, keys.ClassOf(err))
		if i < len(k.places) { // the second round tells nothing new
			texts = append(texts, short(err, one))
		}
	}
	e.Err = fmt.Errorf("no region answered: %s", strings.Join(texts, "; "))
	return e
}

func short(err error, e *keys.Error) string {
	if e == nil || e.Err == nil {
		return err.Error()
	}
	return fmt.Sprintf("%s: %s %v", e.Region, e.Code, e.Err)
}

// share gives a region its part of the time that is left, so that the ones
// behind it get theirs. Not enough: there is too little left for an answer.
func share(ctx context.Context, among int) (context.Context, context.CancelFunc, bool) {
	deadline, ok := ctx.Deadline()
	if !ok {
		c, cancel := context.WithCancel(ctx)
		return c, cancel, true
	}
	part := time.Until(deadline) / time.Duration(among)
	c, cancel := context.WithTimeout(ctx, part)
	return c, cancel, part >= minShare
}

// pause is false if ctx does not leave the time.
func pause(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < d+minShare {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
