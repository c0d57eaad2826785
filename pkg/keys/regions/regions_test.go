package regions_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/regions"
)

// one is a region that answers as it is told.
type one struct {
	name  string
	other bool // another key
	mu    sync.Mutex
	class keys.Class
	hang  bool
	calls int
}

func (o *one) Identity() string {
	if o.other {
		return "test:other"
	}
	return "test:mrk"
}

func (o *one) set(c keys.Class) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.class = c
}

func (o *one) answer(ctx context.Context, op keys.Op) error {
	o.mu.Lock()
	o.calls++
	c, hang := o.class, o.hang
	o.mu.Unlock()
	if hang {
		<-ctx.Done()
		if ctx.Err() == context.Canceled {
			return ctx.Err()
		}
		return &keys.Error{Class: keys.ClassOutage, Op: op, Region: o.name, Code: "Timeout", Err: ctx.Err()}
	}
	if c != keys.ClassNone {
		return &keys.Error{Class: c, Op: op, Region: o.name, Code: "Faked", Err: errors.New("as told")}
	}
	return nil
}

func (o *one) Wrap(ctx context.Context, p keys.Secret, _ keys.Context) (keys.Wrapped, error) {
	return keys.Wrapped{Blob: slices.Clone(p), Region: o.name}, o.answer(ctx, keys.OpWrap)
}

func (o *one) Unwrap(ctx context.Context, b []byte, _ keys.Context) (keys.Unwrapped, error) {
	return keys.Unwrapped{Plaintext: slices.Clone(b), Material: "m", Region: o.name}, o.answer(ctx, keys.OpUnwrap)
}

func join(t *testing.T, q keys.Quorum, in ...*one) *regions.KEK {
	t.Helper()
	var rs []keys.Region
	for _, o := range in {
		rs = append(rs, keys.Region{Name: o.name, KEK: o})
	}
	k, err := regions.New(q, rs...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func unwrap(ctx context.Context, k keys.KEK) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2400*time.Millisecond)
	defer cancel()
	u, err := k.Unwrap(ctx, []byte("blob"), nil)
	return u.Region, err
}

// What one region answers decides whether the next is asked.
func TestFailover(t *testing.T) {
	for name, tc := range map[string]struct {
		class  keys.Class
		quorum keys.Quorum
		passed bool
	}{
		"outage":               {keys.ClassOutage, keys.QuorumAny, true},
		"disabled":             {keys.ClassKeyState, keys.QuorumAny, false},
		"disabled, quorum all": {keys.ClassKeyState, keys.QuorumAll, true},
		"denied":               {keys.ClassAuthorization, keys.QuorumAll, false},
		"credential":           {keys.ClassCredential, keys.QuorumAll, false},
		"damaged":              {keys.ClassData, keys.QuorumAll, false},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := &one{name: "a", class: tc.class}, &one{name: "b"}
			k := join(t, tc.quorum, a, b)
			got, err := unwrap(t.Context(), k)
			if tc.passed && (err != nil || got != "b") {
				t.Errorf("Unwrap = %q, %v; want b", got, err)
			}
			if !tc.passed && (keys.ClassOf(err) != tc.class || b.calls != 0) {
				t.Errorf("Unwrap = %v with %d calls to b; want the denial of a, and none", err, b.calls)
			}
			w, werr := k.Wrap(t.Context(), keys.Secret("x"), nil)
			if tc.passed && (werr != nil || w.Region != "b") {
				t.Errorf("Wrap = %q, %v; want b", w.Region, werr)
			}
		})
	}
}

func TestBlackHoleLeavesTimeForTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := &one{name: "a", hang: true}, &one{name: "b", hang: true}, &one{name: "c"}
		k := join(t, "", a, b, c)
		begun := time.Now()
		if got, err := unwrap(t.Context(), k); err != nil || got != "c" {
			t.Fatalf("Unwrap = %q, %v; want c", got, err)
		}
		if d := time.Since(begun); d > 1600*time.Millisecond {
			t.Errorf("it took %s: two thirds of the time are for the two silent regions", d)
		}
		begun = time.Now()
		if got, err := unwrap(t.Context(), k); err != nil || got != "c" || time.Since(begun) != 0 {
			t.Errorf("the next Unwrap = %q, %v after %s; want c at once", got, err, time.Since(begun))
		}
	})
}

func TestNoRegionAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &one{name: "a", class: keys.ClassOutage}, &one{name: "b", class: keys.ClassKeyState}
		k := join(t, keys.QuorumAll, a, b)
		_, err := unwrap(t.Context(), k)
		var e *keys.Error
		if !errors.As(err, &e) || e.Class != keys.ClassOutage || e.Region != "a" || e.Key != "test:mrk" {
			t.Fatalf("Unwrap = %v (%+v), want an outage: one region may yet serve", err, e)
		}
		if s := err.Error(); strings.Count(s, "as told") != 2 || !strings.Contains(s, "a: Faked") || !strings.Contains(s, "b: Faked") || strings.Contains(s, "\n") {
			t.Errorf("the error %q does not name each region once, in one line", s)
		}
		if a.calls != 2 || b.calls != 2 {
			t.Errorf("%d and %d calls, want two rounds", a.calls, b.calls)
		}
		a.hang, b.hang = true, true
		begun := time.Now()
		if _, err := unwrap(t.Context(), k); keys.ClassOf(err) != keys.ClassOutage || time.Since(begun) > 2400*time.Millisecond {
			t.Errorf("Unwrap of two black holes = %v after %s", err, time.Since(begun))
		}
	})
}

func TestCancel(t *testing.T) {
	a, b := &one{name: "a", hang: true}, &one{name: "b"}
	k := join(t, "", a, b)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := k.Unwrap(ctx, nil, nil); keys.ClassOf(err) != keys.ClassCanceled || b.calls != 0 {
		t.Errorf("Unwrap = %v with %d calls to b, want canceled and none", err, b.calls)
	}
	if k.InUse() != "a" {
		t.Error("a cancelled call sent the next ones elsewhere")
	}
}

// Away at once, back slowly, and only by answers.
func TestFailBackDoesNotFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := &one{name: "a"}, &one{name: "b"}
		k := join(t, "", a, b)
		probe := func(n int, every time.Duration) {
			for range n {
				time.Sleep(every)
				for _, r := range k.Regions() {
					_, _ = r.KEK.Unwrap(t.Context(), []byte("x"), nil)
				}
			}
		}
		a.set(keys.ClassOutage)
		if got, _ := unwrap(t.Context(), k); got != "b" || k.InUse() != "b" {
			t.Fatalf("in use %q after an outage of a", k.InUse())
		}
		a.set(keys.ClassNone)
		probe(20, time.Second)
		if k.InUse() != "b" {
			t.Error("back after 20 s, many good answers or not")
		}
		a.set(keys.ClassOutage)
		probe(1, time.Second)
		a.set(keys.ClassNone)
		probe(29, time.Second)
		if k.InUse() != "b" {
			t.Error("back 29 s after the last bad answer")
		}
		probe(2, time.Second)
		if k.InUse() != "a" {
			t.Error("not back after half a minute of good answers")
		}
		a.set(keys.ClassOutage)
		probe(1, time.Minute)
		a.set(keys.ClassNone)
		probe(2, time.Minute)
		if k.InUse() != "b" {
			t.Error("back after two answers")
		}
		probe(1, time.Minute)
		if k.InUse() != "a" {
			t.Error("not back after three answers")
		}
	})
}

// A canary that is denied in one region moves the calls; a request that is denied
// does not, or whoever makes requests could.
func TestOnlyCanariesMoveCallsForADenial(t *testing.T) {
	a, b := &one{name: "a", class: keys.ClassAuthorization}, &one{name: "b"}
	k := join(t, "", a, b)
	_, _ = unwrap(t.Context(), k)
	if k.InUse() != "a" {
		t.Error("a denied request moved the calls")
	}
	for _, r := range k.Regions() {
		_, _ = r.KEK.Unwrap(t.Context(), nil, nil)
	}
	if got, err := unwrap(t.Context(), k); err != nil || got != "b" {
		t.Errorf("Unwrap after a denied canary = %q, %v; want b", got, err)
	}
	b.set(keys.ClassOutage) // nothing better than what is denied
	if _, err := unwrap(t.Context(), k); keys.ClassOf(err) != keys.ClassAuthorization {
		t.Errorf("Unwrap = %v, want the denial of a", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for name, in := range map[string][]keys.Region{
		"one region":  {{Name: "a", KEK: &one{}}},
		"another key": {{Name: "a", KEK: &one{}}, {Name: "b", KEK: &one{other: true}}},
	} {
		if _, err := regions.New("", in...); err == nil {
			t.Errorf("%s: New succeeded", name)
		}
	}
}
