package custody

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

const (
	// flightTimeout bounds one remote unwrap on behalf of requests. It ends
	// before plugin.CallTimeout, so that the waiters learn the cause.
	flightTimeout = 2400 * time.Millisecond
	// failureMemory is how long a failed unwrap is answered from memory: a LIST
	// of a hundred objects under one dead local KEK costs one call a second.
	failureMemory = time.Second
	// leastCall is the time that a call to the KMS must have: with less it would tell
	// of an outage that there is not.
	leastCall   = 100 * time.Millisecond
	maxFailures = 4096
)

type digest = [32]byte

// flights makes one remote call for any number of requests that need the same
// answer. A call goes on when the request that began it is cancelled: others
// may wait for it, and the next try of the same request finds the result. One that
// has not begun when the last request gave up is not made.
type flights[T any] struct {
	gate    *gate
	slots   chan struct{} // calls in flight
	patient bool          // any number may queue, and not only for what others ask for, which costs no call

	mu      sync.Mutex
	asked   map[digest]int // requests between look and their end
	running map[digest]*flight[T]
	failed  map[digest]failure
}

type flight[T any] struct {
	done  chan struct{}
	value T
	err   error

	waiters int           // under mu of flights
	begun   bool          // under mu of flights
	vain    chan struct{} // closed when nobody waits and it has not begun
}

type failure struct {
	err   error
	until time.Time
}

func newFlights[T any](g *gate, parallel int) *flights[T] {
	return &flights[T]{gate: g, slots: make(chan struct{}, parallel), asked: map[digest]int{},
		running: map[digest]*flight[T]{}, failed: map[digest]failure{}}
}

// do runs call once for all that ask for d at the same time. The result names
// how the answer was found, as Observer.CacheResult counts it.
func (f *flights[T]) do(ctx context.Context, d digest, call func(context.Context) (T, error)) (value T, result string, err error) {
	shared, err := f.look(d)
	if err != nil {
		return value, "failed-recently", err
	}
	defer f.unask(d)
	ctx, cancel := context.WithTimeout(ctx, plugin.CallTimeout)
	defer cancel()
	if err := f.gate.enter(ctx, f.patient || shared); err != nil {
		return value, "refused", err
	}
	defer f.gate.leave()
	fl, result := f.join(d, call)
	defer f.part(d, fl)
	select {
	case <-fl.done:
		return fl.value, result, fl.err
	case <-ctx.Done():
		return value, result, fmt.Errorf("%w: wait for the KMS: %w", keys.ErrBusy, ctx.Err())
	}
}

// look says whether somebody else asks for d now, or did in vain a moment ago.
func (f *flights[T]) look(d digest) (shared bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x, ok := f.failed[d]; ok && time.Now().Before(x.until) {
		return false, x.err
	}
	f.asked[d]++
	return f.asked[d] > 1 || f.running[d] != nil, nil
}

func (f *flights[T]) unask(d digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked[d]--; f.asked[d] == 0 {
		delete(f.asked, d)
	}
}

func (f *flights[T]) join(d digest, call func(context.Context) (T, error)) (*flight[T], string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.running[d]; fl != nil {
		fl.waiters++
		return fl, "shared"
	}
	fl := &flight[T]{done: make(chan struct{}), waiters: 1, vain: make(chan struct{})}
	f.running[d] = fl
	go f.run(d, fl, call)
	return fl, "miss"
}

// part ends the wait of one request.
func (f *flights[T]) part(d digest, fl *flight[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters == 0 && !fl.begun && f.running[d] == fl {
		delete(f.running, d)
		close(fl.vain)
	}
}

// begin says whether anybody still waits.
func (f *flights[T]) begin(fl *flight[T]) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.begun = fl.waiters > 0
	return fl.begun
}

func (f *flights[T]) run(d digest, fl *flight[T], call func(context.Context) (T, error)) {
	ctx, cancel := context.WithTimeout(context.Background(), flightTimeout)
	defer cancel()
	begun, slot := time.Now(), false
	select {
	case f.slots <- struct{}{}:
		slot = time.Since(begun) < flightTimeout-leastCall
		defer func() { <-f.slots }()
	case <-fl.vain:
	case <-ctx.Done():
	}
	switch {
	case !f.begin(fl): // part has removed it, and another may be in its place
		return
	case slot:
		if fl.value, fl.err = call(ctx); keys.ClassOf(fl.err) != keys.ClassOutage {
			f.gate.progress()
		}
	default:
		fl.err = fmt.Errorf("%w: no call to the KMS could be made in time", keys.ErrBusy)
	}
	f.mu.Lock()
	delete(f.running, d)
	switch {
	case fl.err == nil:
		delete(f.failed, d)
	case !errors.Is(fl.err, keys.ErrBusy): // else no call was made
		f.remember(d, fl.err)
	}
	f.mu.Unlock()
	close(fl.done)
}

// remember keeps a failure for a moment; the caller holds mu. When full, the
// memory is emptied: it saves calls, nothing depends on it.
func (f *flights[T]) remember(d digest, err error) {
	if len(f.failed) >= maxFailures {
		clear(f.failed)
	}
	f.failed[d] = failure{err: err, until: time.Now().Add(failureMemory)}
}
