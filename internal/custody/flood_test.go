package custody_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

func TestBlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		other := start(t, ring(t, write("prod", c)), "")
		unknown := mustSeal(t, other)
		i := start(t, ring(t, write("prod", c)), "")
		own := mustSeal(t, i)
		c.mu.Lock()
		c.hang = true
		c.mu.Unlock()
		begun := time.Now()
		var wg sync.WaitGroup
		for n := range 1000 {
			s := unknown
			s.Annotations = map[string][]byte{envelope.AnnotationKey: strangerHeader(t, unknown, n)}
			wg.Go(func() {
				if err := open(t.Context(), i, s); err == nil {
					t.Error("opened what no KEK unwrapped")
				}
			})
		}
		synctest.Wait()
		mustOpen(t, i, own)
		mustKeyID(t, i)
		wg.Wait()
		if d := time.Since(begun); d > 2500*time.Millisecond {
			t.Errorf("the last of a thousand Decrypts failed after %s, want 2.5s", d)
		}
	})
}

// A flood of unknown local KEKs that the KMS answers: what exceeds both the waiting
// places and the tokens is refused at once, and what is known opens beside it.
func TestFloodOfUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		unknown := mustSeal(t, start(t, ring(t, write("prod", c)), ""))
		i := start(t, ring(t, write("prod", c)), "")
		own := mustSeal(t, i)
		const n = 5000
		var answered atomic.Int64
		for n := range n {
			s := unknown
			s.Annotations = map[string][]byte{envelope.AnnotationKey: damagedHeader(t, unknown, n)}
			go func() {
				if err := open(t.Context(), i, s); err == nil {
					t.Error("opened what no KEK unwrapped")
				}
				answered.Add(1)
			}()
		}
		sleep(500 * time.Millisecond)
		if got := answered.Load(); got < n-256 {
			t.Errorf("%d of %d are answered in half a second: the others keep Status from its stream", got, n)
		}
		mustOpen(t, i, own)
		mustKeyID(t, i)
		sleep(2 * time.Second)
		if got := answered.Load(); got != n {
			t.Errorf("%d of %d are answered when their time is up", got, n)
		}
	})
}

// damagedHeader is one that its KMS refuses to unwrap.
func damagedHeader(t *testing.T, s plugin.Sealed, n int) []byte {
	h, err := envelope.Parse(strangerHeader(t, s, n))
	if err != nil {
		t.Fatal(err)
	}
	h.Wrapped = append([]byte(nil), h.Wrapped...)
	h.Wrapped[len(h.Wrapped)-1]++
	raw, err := h.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// strangerHeader is a header of a local KEK that nobody has.
func strangerHeader(t *testing.T, s plugin.Sealed, n int) []byte {
	h, err := envelope.Parse(s.Annotations[envelope.AnnotationKey])
	if err != nil {
		t.Fatal(err)
	}
	h.LocalKEK[0], h.LocalKEK[1] = byte(n), byte(n>>8)
	raw, err := h.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		other := start(t, ring(t, write("prod", c)), "")
		s := mustSeal(t, other)
		i := start(t, ring(t, write("prod", c)), "")
		before := c.count(keys.OpUnwrap)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if err := open(t.Context(), i, s); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := c.count(keys.OpUnwrap) - before; n != 1 {
			t.Errorf("100 Decrypts under one local KEK made %d remote calls, want 1", n)
		}
	})
}

func TestFailedUnwrapIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		other := start(t, ring(t, write("prod", c)), "")
		s := mustSeal(t, other)
		i := start(t, ring(t, write("prod", c)), "")
		c.set(keys.ClassOutage, keys.OpUnwrap)
		before := c.count(keys.OpUnwrap)
		for range 50 {
			if err := open(t.Context(), i, s); keys.ClassOf(err) != keys.ClassOutage {
				t.Fatalf("Open = %v, want the outage", err)
			}
		}
		if n := c.count(keys.OpUnwrap) - before; n != 1 {
			t.Errorf("50 Decrypts of one dead local KEK made %d calls, want 1", n)
		}
		c.set(keys.ClassNone)
		sleep(1100 * time.Millisecond)
		mustOpen(t, i, s)
	})
}
