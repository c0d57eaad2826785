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
	// Where other regions can answer, they are the better second attempt.
	attemptsOfSeveral = 2
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
	return line{k.arn, k.attempts, k.creds.refused}.attempt(ctx, op, call)
}

// line is where calls go, and who hears of a credential that was refused.
type line struct {
	arn      arn
	attempts int
	refused  func() // may be nil
}

func (l line) attempt(ctx context.Context, op keys.Op, call func(context.Context) error) error {
	backoff := firstBackoff
	for n := 1; ; n++ {
		err := once(ctx, call)
		if err == nil {
			return nil
		}
		e, retry := judge(err)
		if e.Class == keys.ClassCredential && e.Code != codeCredentials && l.refused != nil {
			l.refused()
		}
		e.Op, e.Key, e.Region = op, l.arn.identity(), l.arn.region
		if errors.Is(ctx.Err(), context.Canceled) {
			e.Class, e.Code, e.Err = keys.ClassCanceled, "", ctx.Err()
			return &e
		}
		pause := backoff/2 + rand.N(backoff)
		if !retry || n == l.attempts || !timeFor(ctx, pause+minAttempt) {
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
