package custody

import (
	"context"
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
	maxFailures   = 4096
)

type digest = [32]byte

// flights makes one remote call for any number of requests that need the same
// answer. A call goes on when the request that began it is cancelled: others
// may wait for it, and the next try of the same request finds the result.
type flights[T any] struct {
	gate  *gate
	slots chan struct{} // calls in flight

	mu      sync.Mutex
	running map[digest]*flight[T]
	failed  map[digest]failure
}

type flight[T any] struct {
	done  chan struct{}
	value T
	err   error
}

type failure struct {
	err   error
	until time.Time
}

func newFlights[T any](g *gate, parallel int) *flights[T] {
	return &flights[T]{gate: g, slots: make(chan struct{}, parallel),
		running: map[digest]*flight[T]{}, failed: map[digest]failure{}}
}

// do runs call once for all that ask for d at the same time. The result names
// how the answer was found, as Observer.CacheResult counts it.
func (f *flights[T]) do(ctx context.Context, d digest, call func(context.Context) (T, error)) (value T, result string, err error) {
	if err := f.recent(d); err != nil {
		return value, "failed-recently", err
	}
	ctx, cancel := context.WithTimeout(ctx, plugin.CallTimeout)
	defer cancel()
	if err := f.gate.enter(ctx); err != nil {
		return value, "refused", err
	}
	defer f.gate.leave()
	fl, result := f.join(d, call)
	select {
	case <-fl.done:
		return fl.value, result, fl.err
	case <-ctx.Done():
		return value, result, fmt.Errorf("%w: wait for the KMS: %w", keys.ErrBusy, ctx.Err())
	}
}

func (f *flights[T]) recent(d digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if x, ok := f.failed[d]; ok && time.Now().Before(x.until) {
		return x.err
	}
	return nil
}

func (f *flights[T]) join(d digest, call func(context.Context) (T, error)) (*flight[T], string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.running[d]; fl != nil {
		return fl, "shared"
	}
	fl := &flight[T]{done: make(chan struct{})}
	f.running[d] = fl
	go f.run(d, fl, call)
	return fl, "miss"
}

func (f *flights[T]) run(d digest, fl *flight[T], call func(context.Context) (T, error)) {
	ctx, cancel := context.WithTimeout(context.Background(), flightTimeout)
	defer cancel()
	select {
	case f.slots <- struct{}{}:
		fl.value, fl.err = call(ctx)
		<-f.slots
	case <-ctx.Done():
		fl.err = fmt.Errorf("%w: no call to the KMS could be made in time", keys.ErrBusy)
	}
	if c := keys.ClassOf(fl.err); c != keys.ClassOutage {
		f.gate.progress()
	}
	f.mu.Lock()
	delete(f.running, d)
	if fl.err != nil {
		f.remember(d, fl.err)
	} else {
		delete(f.failed, d)
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
