package awskms

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"kms-plugin.io/pkg/keys"
)

const (
	// attemptTimeout lets two silent connections fail and a third answer within
	// the 2.5 s that a request of kube-apiserver has here.
	attemptTimeout = 900 * time.Millisecond
	maxAttempts    = 6
	// The SDK's first back-off is up to a second: too long for that budget.
	firstBackoff = 40 * time.Millisecond
	maxBackoff   = 400 * time.Millisecond
	// minAttempt is how much time must be left for another attempt to be worth
	// more than the error already at hand.
	minAttempt = 50 * time.Millisecond
)

// attempt calls until it succeeds, the error is final, or ctx leaves no time,
// and keeps the last error with its cause: a bare "deadline exceeded" would hide
// a throttle behind it.
func (k *KEK) attempt(ctx context.Context, op keys.Op, call func(context.Context) error) error {
	return attempt(ctx, k.arn, op, call)
}

func attempt(ctx context.Context, a arn, op keys.Op, call func(context.Context) error) error {
	backoff := firstBackoff
	for n := 1; ; n++ {
		err := once(ctx, call)
		if err == nil {
			return nil
		}
		e, retry := judge(err)
		e.Op, e.Key, e.Region = op, a.identity(), a.region
		if errors.Is(ctx.Err(), context.Canceled) {
			e.Class, e.Code, e.Err = keys.ClassCanceled, "", ctx.Err()
			return &e
		}
		pause := backoff/2 + rand.N(backoff)
		if !retry || n == maxAttempts || !timeFor(ctx, pause+minAttempt) {
			return &e
		}
		if !sleep(ctx, pause) {
			return &e
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

func once(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return call(ctx)
}

func timeFor(ctx context.Context, d time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() == nil && (!ok || time.Until(deadline) > d)
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
