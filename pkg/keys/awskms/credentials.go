package awskms

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"kms-plugin.io/pkg/keys"
)

const (
	// fetchTimeout bounds one try to get a credential. It is a budget of its own:
	// a call of the KMS gives up long before.
	fetchTimeout = 10 * time.Second
	// renewWindow before its end a credential is renewed, or at a quarter of its
	// life if that is less, and up to half as much earlier at random: the nodes of a
	// cluster must not ask together. Sources hand out the next one five minutes
	// before the end of the last, some not before.
	renewWindow = 6 * time.Minute
	// renewAgain is the pause when a source still hands out the same one.
	renewAgain = time.Minute
	// retryFirst and retryMost are the pauses after failed tries.
	retryFirst = time.Second
	retryMost  = 30 * time.Second
	// failFast is how long a failed try answers for all calls.
	failFast = time.Second
)

// store holds the credential of one KEK. Calls take what is there; KeepCredential
// renews it. Only while there is none, or it ended, a call waits for the fetch under
// way, and not even then if the one before failed. A fetch may outlive the call that
// began it, by fetchTimeout at most.
type store struct {
	source      func(context.Context) (aws.Credentials, error)
	allowStatic bool
	about       keys.Credential // Kind and Source
	poke        chan struct{}   // capacity 1: the KMS refused the credential

	mu      sync.Mutex
	cred    aws.Credentials
	renewAt time.Time     // zero: nothing to renew
	err     error         // of the last fetch
	failed  time.Time     // when
	tries   int           // failed ones in a row
	flight  chan struct{} // closed when the fetch under way ends; nil: none
	fetched time.Time
}

var _ aws.CredentialsProvider = (*store)(nil)

func newStore(source func(context.Context) (aws.Credentials, error), about keys.Credential, allowStatic bool) *store {
	return &store{source: source, about: about, allowStatic: allowStatic, poke: make(chan struct{}, 1)}
}

// Retrieve implements aws.CredentialsProvider.
func (s *store) Retrieve(ctx context.Context) (aws.Credentials, error) {
	s.mu.Lock()
	if s.usable() {
		defer s.mu.Unlock()
		return s.cred, nil
	}
	if s.err != nil && (s.flight != nil || time.Since(s.failed) < failFast) {
		defer s.mu.Unlock()
		return aws.Credentials{}, s.err
	}
	done := s.begin()
	s.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
		return aws.Credentials{}, &credentialError{ctx.Err()}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.usable() {
		return s.cred, nil
	}
	return aws.Credentials{}, s.err
}

// usable says whether the credential can sign; the caller holds mu.
func (s *store) usable() bool {
	return s.cred.HasKeys() && (!s.cred.CanExpire || time.Now().Before(s.cred.Expires))
}

// begin joins the fetch under way or starts one; the caller holds mu.
func (s *store) begin() <-chan struct{} {
	if s.flight == nil {
		s.flight = make(chan struct{})
		go s.fetch()
	}
	return s.flight
}

func (s *store) fetch() {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	c, err := s.source(ctx)
	if err == nil {
		err = s.check(c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.fetched = now
	if err != nil {
		s.err, s.failed = &credentialError{err}, now
		s.tries++
	} else {
		s.renewAt = renewal(now, c, s.cred.CanExpire && !c.Expires.After(s.cred.Expires))
		s.cred, s.err, s.tries = c, nil, 0
	}
	close(s.flight)
	s.flight = nil
}

// check refuses what does not expire by itself, or at a time nobody knows: such a
// credential works from anywhere, and nothing renews it.
func (s *store) check(c aws.Credentials) error {
	switch {
	case !c.HasKeys():
		return errors.New("the source answered without a credential")
	case !s.allowStatic && !c.CanExpire:
		return fmt.Errorf("%w (source %s)", errStatic, c.Source)
	case c.CanExpire && !c.Expires.After(time.Now()):
		return errEnded
	}
	return nil
}

// renewal is when to renew a credential.
func renewal(now time.Time, c aws.Credentials, same bool) time.Time {
	if !c.CanExpire {
		return time.Time{}
	}
	left := c.Expires.Sub(now)
	window := min(renewWindow, left/4)
	at := c.Expires.Add(-window - jitter(window/2))
	if same {
		again := min(renewAgain, left/4)
		at = now.Add(max(again/2+jitter(again), retryFirst))
	}
	return at
}

func jitter(most time.Duration) time.Duration { return rand.N(max(most, 1)) }

// pause is how long there is nothing to do; more than zero: for ever.
func (s *store) pause() (wait time.Duration, idle bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		backoff := min(retryMost, retryFirst<<min(s.tries-1, 5))
		return max(0, time.Until(s.failed.Add(backoff/2+jitter(backoff)))), false
	case !s.cred.HasKeys():
		return 0, false
	case s.renewAt.IsZero():
		return 0, true
	}
	return max(0, time.Until(s.renewAt)), false
}

// keep renews until ctx ends.
func (s *store) keep(ctx context.Context, changed func()) {
	for s.rest(ctx) {
		s.mu.Lock()
		done := s.begin()
		s.mu.Unlock()
		select {
		case <-done:
			changed()
		case <-ctx.Done():
			return
		}
	}
}

// rest waits until it is time to fetch; false: ctx has ended.
func (s *store) rest(ctx context.Context) bool {
	wait, idle := s.pause()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	due := timer.C
	if idle {
		due = nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-due:
		return true
	case <-s.poke:
	}
	s.mu.Lock()
	soonest := time.Until(s.fetched.Add(retryMost / 2)) // a KMS that refuses for ever must not be a load on the source
	s.mu.Unlock()
	return sleep(ctx, soonest)
}

// refused: the KMS did not accept the credential, whatever its end says.
func (s *store) refused() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

func (s *store) describe() keys.Credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.about
	c.Err = s.err
	if s.cred.HasKeys() && s.cred.CanExpire {
		c.Expires = s.cred.Expires
	}
	return c
}
