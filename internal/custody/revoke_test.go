package custody_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/custody"
	"kms-plugin.io/internal/health"
	"kms-plugin.io/pkg/keys"
)

// soon are limits that a test can wait for.
var soon = func() custody.Tuning {
	t := tuning
	t.Limits.MaxOutage, t.Limits.MaxOutageDecrypt = 10*time.Minute, 20*time.Minute
	return t
}()

func startSoon(t *testing.T, r *keys.Ring) *instance {
	t.Helper()
	w := &watcher{}
	return startWith(t, w, custody.Config{Ring: r, Tuning: soon, Observer: w})
}

// Egress blocked before a key was ever probed: what a request has unwrapped meanwhile
// does not stay open for ever.
func TestOutageOfAKeyNeverProbed(t *testing.T) {
	for name, tc := range map[string]struct {
		ring func(t *testing.T, a, b *cloud) *keys.Ring
		away func(a, b *cloud) // after the first Open
	}{
		"a read key": {
			func(t *testing.T, a, b *cloud) *keys.Ring {
				return ring(t, write("o", newCloud("o")), read("a", a), read("b", b))
			},
			func(a, b *cloud) { a.set(keys.ClassOutage, both...); b.set(keys.ClassOutage, both...) },
		},
		"a co-recipient that never answered": {
			func(t *testing.T, a, b *cloud) *keys.Ring {
				b.set(keys.ClassOutage, both...)
				return ring(t, also("a", a, "b"), read("b", b))
			},
			func(a, _ *cloud) { sleep(2 * time.Minute); a.set(keys.ClassOutage, both...) },
		},
	} {
		bubble(name, func(t *testing.T) {
			a, b := newCloud("a"), newCloud("b")
			was := start(t, ring(t, also("a", a, "b"), read("b", b)), "")
			s := mustSeal(t, was)
			was.stop()
			i := startSoon(t, tc.ring(t, a, b))
			mustOpen(t, i, s)
			tc.away(a, b)
			sleep(soon.Limits.MaxOutageDecrypt - 5*time.Minute)
			mustOpen(t, i, s) // an outage closes nothing before its limit
			sleep(7 * time.Minute)
			var shut *keys.ShutError
			if err := open(t.Context(), i, s); !errors.As(err, &shut) || shut.Class != keys.ClassOutage {
				t.Errorf("Open after maxOutageDecrypt = %v, want ShutError", err)
			}
			if got := i.Report().LocalKEKs; name == "a read key" && len(got) != 1 || name != "a read key" && len(got) != 0 {
				t.Errorf("local KEKs %v in memory", got)
			}
			a.set(keys.ClassNone)
			sleep(2 * time.Second)
			mustOpen(t, i, s)
		})(t)
	}
}

// A key that nobody needed for longer than any limit is no outage.
func TestKeyNeverAskedStaysOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newCloud("a")
		was := start(t, ring(t, write("a", a)), "")
		s := mustSeal(t, was)
		was.stop()
		i := startSoon(t, ring(t, write("o", newCloud("o")), retired("a", a)))
		sleep(4 * soon.Limits.MaxOutageDecrypt)
		mustOpen(t, i, s)
	})
}

// The bound holds at any moment of the prober's cycle, with a KMS that takes its time,
// for a key alone, one with a co-recipient and one in two regions; and it is no more
// than the pauses and timers that it is made of.
func TestRevocationBound(t *testing.T) {
	tune := tuning
	tune.ProbeInterval = 20 * time.Second
	tune.Limits = health.Limits{MaxOutage: 4 * time.Minute, MaxOutageDecrypt: 6 * time.Minute, KeyState: 30 * time.Second,
		Authorization: 2 * time.Minute, Credential: 3 * time.Minute, WipeAfter: time.Minute}
	bounds := tune.Bounds()
	longest := map[keys.Class]time.Duration{}
	for class := range bounds {
		for n := range 9 {
			bubble(class.String(), func(t *testing.T) {
				a, b := newCloud("a"), newCloud("b")
				us, w := a.replica(), &watcher{}
				e := [...]keys.Entry{write("prod", a), also("prod", a, "b"), several(t, "", a, us)}[n%3]
				i := startWith(t, w, custody.Config{Ring: ring(t, e, read("b", b)), Tuning: tune, Observer: w})
				s := mustSeal(t, i)
				for _, c := range []*cloud{a, b, us} {
					c.delay(time.Duration(n) * 250 * time.Millisecond)
				}
				sleep(time.Minute + time.Duration(n)*7300*time.Millisecond)
				for _, c := range []*cloud{a, b, us} {
					c.set(class, both...)
				}
				begun, last := time.Now(), time.Duration(0)
				for time.Since(begun) < bounds[class]+time.Minute {
					if open(t.Context(), i, s) == nil {
						last = time.Since(begun)
					}
					sleep(100 * time.Millisecond)
				}
				if last > bounds[class] {
					t.Errorf("the last seed was opened after %s, the bound is %s", last, bounds[class])
				}
				longest[class] = max(longest[class], last)
			})(t)
		}
		if longest[class] < bounds[class]/2 {
			t.Errorf("%s: the bound is %s, nothing came nearer than %s", class, bounds[class], longest[class])
		}
		t.Logf("%s: bound %s, longest seen %s", class, bounds[class], longest[class])
	}
}
