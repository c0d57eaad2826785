package custody_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

// silent is an instance whose KMS answers no more, and what another sealed.
func silent(t *testing.T) (*cloud, *instance, func(n int) plugin.Sealed) {
	t.Helper()
	c := newCloud("a")
	unknown := mustSeal(t, start(t, ring(t, write("prod", c)), ""))
	i := start(t, ring(t, write("prod", c)), "")
	c.mu.Lock()
	c.hang = true
	c.mu.Unlock()
	return c, i, func(n int) plugin.Sealed {
		s := unknown
		if n < 0 { // as it was sealed
			return s
		}
		s.Annotations = map[string][]byte{envelope.AnnotationKey: strangerHeader(t, unknown, n)}
		return s
	}
}

// What is over half of the streams is refused before any time has passed, but not who asks
// for what is on its way.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, i, stranger := silent(t)
		var refused, shared atomic.Int64
		var wg sync.WaitGroup
		defer wg.Wait()
		for n := range plugin.MaxStreams {
			wg.Go(func() {
				if err := open(t.Context(), i, stranger(n)); errors.Is(err, keys.ErrBusy) && strings.Contains(err.Error(), "192 unknown local KEKs wait already") {
					refused.Add(1)
				}
			})
		}
		synctest.Wait()
		if n := refused.Load(); n != plugin.MaxStreams/2 {
			t.Errorf("%d are refused at once, want %d", n, plugin.MaxStreams/2)
		}
		for n := range plugin.MaxStreams {
			wg.Go(func() {
				err := open(t.Context(), i, stranger(n))
				if err != nil && !strings.Contains(err.Error(), "192 unknown") {
					shared.Add(1)
				}
			})
		}
		sleep(1300 * time.Millisecond)
		if n := shared.Load(); n != 192 {
			t.Errorf("%d waited for what another asks for, want 192", n)
		}
	})
}

// A call that has not begun when its request gives up is not made.
func TestNoCallInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, i, stranger := silent(t)
		var wg sync.WaitGroup
		defer wg.Wait()
		before := c.count(keys.OpUnwrap)
		for n := range 48 {
			wg.Go(func() { _ = open(t.Context(), i, stranger(n)) }) // all time out
		}
		sleep(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		for n := range 100 {
			wg.Go(func() { _ = open(ctx, i, stranger(48+n)) })
		}
		sleep(3 * time.Second)
		if n := c.count(keys.OpUnwrap) - before; n != 48 {
			t.Errorf("%d calls were made, want 48", n)
		}
	})
}

// crowd has an instance open each of these at the same time, in this order.
func crowd(t *testing.T, i *instance, all ...plugin.Sealed) (failed []error) {
	t.Helper()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for n, s := range all {
		wg.Go(func() { errs[n] = open(t.Context(), i, s) })
		synctest.Wait()
	}
	wg.Wait()
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// A crowd that asks for the same few local KEKs, as of an API server that starts, is never
// refused: not while others queue, not by a slow first answer, not after made-up ones have
// used up the tokens.
func TestCrowdOfTheSame(t *testing.T) {
	for name, tt := range map[string]struct {
		slow   time.Duration
		second int // from this one on it is another local KEK
		madeUp int
	}{
		"two local KEKs":      {100 * time.Millisecond, plugin.MaxStreams / 2, 0},
		"a slow first answer": {800 * time.Millisecond, plugin.MaxStreams, 0},
		"no token is left":    {100 * time.Millisecond, plugin.MaxStreams, 1100},
	} {
		bubble(name, func(t *testing.T) {
			c := newCloud("a")
			first, second := mustSeal(t, start(t, ring(t, write("prod", c)), "")), mustSeal(t, start(t, ring(t, write("prod", c)), ""))
			i := start(t, ring(t, write("prod", c)), "")
			var made []plugin.Sealed
			for n := range tt.madeUp {
				s := first
				s.Annotations = map[string][]byte{envelope.AnnotationKey: damagedHeader(t, first, n)}
				made = append(made, s)
			}
			if failed := crowd(t, i, made...); len(failed) != tt.madeUp {
				t.Fatalf("%d of %d made up ones do not open", len(failed), tt.madeUp)
			}
			c.delay(tt.slow)
			var all []plugin.Sealed
			for n := range plugin.MaxStreams {
				if n < tt.second {
					all = append(all, first)
				} else {
					all = append(all, second)
				}
			}
			if failed := crowd(t, i, all...); len(failed) > 0 {
				t.Errorf("%d are refused: %v", len(failed), failed[0])
			}
		})(t)
	}
}

// That there was no room for a call tells nothing of what was asked for.
func TestBusyIsNotRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, i, stranger := silent(t)
		genuine := stranger(-1)
		var wg sync.WaitGroup
		for n := range 48 {
			wg.Go(func() { _ = open(t.Context(), i, stranger(n)) })
		}
		synctest.Wait()
		if err := open(t.Context(), i, genuine); !errors.Is(err, keys.ErrBusy) {
			t.Errorf("with all calls taken: %v", err)
		}
		wg.Wait()
		c.silent(false)
		if err := open(t.Context(), i, genuine); err != nil {
			t.Errorf("a moment later: %v", err)
		}
	})
}

// In direct mode a cold start needs a call for each seed: any number may wait, for all are
// answered in turn.
func TestCrowdOfDirectSeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		i := start(t, ringFor(t, "prod", keys.WrapDirect, write("prod", c)), "")
		var all []plugin.Sealed
		for range plugin.MaxStreams {
			all = append(all, mustSeal(t, i))
		}
		c.delay(100 * time.Millisecond)
		if failed := crowd(t, i, all...); len(failed) > 0 {
			t.Errorf("%d are refused: %v", len(failed), failed[0])
		}
	})
}
