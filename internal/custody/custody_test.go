package custody_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/health"
	"kms-plugin.io/pkg/keys"
)

func TestSealOpenRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dir := newCloud("a"), t.TempDir()
		i := start(t, ring(t, write("prod", c)), dir)
		id, s := mustKeyID(t, i), mustSeal(t, i)
		if s.KeyID != id {
			t.Errorf("Encrypt's key_id %q is not Status' %q", s.KeyID, id)
		}
		mustOpen(t, i, s)
		if n := c.count(keys.OpUnwrap); n != 1 {
			t.Errorf("start, seal and open made %d unwraps, want the 1 of the verified wrap", n)
		}
		i.stop()

		again := start(t, ring(t, write("prod", c)), dir)
		if got := mustKeyID(t, again); got != id {
			t.Errorf("key_id after a restart is %q, want %q", got, id)
		}
		mustOpen(t, again, s)
		if got := mustSeal(t, again).Annotations[envelope.AnnotationKey]; !bytes.Equal(got, s.Annotations[envelope.AnnotationKey]) {
			t.Error("a restart made another local KEK, though the state file was there")
		}
		again.stop()

		fresh := start(t, ring(t, write("prod", c)), t.TempDir())
		if got := mustKeyID(t, fresh); got != id {
			t.Errorf("key_id of a fresh instance is %q, want %q", got, id)
		}
		mustOpen(t, fresh, s)
	})
}

func TestStartWhileTheCloudIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		c.set(keys.ClassOutage, keys.OpWrap, keys.OpUnwrap)
		i := start(t, ring(t, write("prod", c)), t.TempDir())
		if id, err := i.KeyID(); !errors.Is(err, keys.ErrNotReady) || !strings.Contains(err.Error(), "Faked") {
			t.Fatalf("KeyID = %q, %v; want ErrNotReady with the cause, never an invented id", id, err)
		}
		if _, err := i.Seal(t.Context(), seed); !errors.Is(err, keys.ErrNotReady) {
			t.Errorf("Seal = %v, want ErrNotReady", err)
		}
		sleep(time.Hour)
		c.set(keys.ClassNone)
		sleep(2 * time.Second)
		mustOpen(t, i, mustSeal(t, i))
	})
}

func TestRestartInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dir := newCloud("a"), t.TempDir()
		i := start(t, ring(t, write("prod", c)), dir)
		id, s := mustKeyID(t, i), mustSeal(t, i)
		i.stop()
		c.set(keys.ClassOutage, keys.OpWrap, keys.OpUnwrap)
		i = start(t, ring(t, write("prod", c)), dir)
		if got := mustKeyID(t, i); got != id {
			t.Errorf("key_id = %q, want the remembered %q", got, id)
		}
		if _, err := i.Seal(t.Context(), seed); !errors.Is(err, keys.ErrNotReady) {
			t.Errorf("Seal = %v, want ErrNotReady", err)
		}
		if err := open(t.Context(), i, s); keys.ClassOf(err) != keys.ClassOutage {
			t.Errorf("Open = %v, want an outage", err)
		}
		if i.Ready() == nil {
			t.Error("Ready without a local KEK in memory")
		}
		c.set(keys.ClassNone)
		sleep(2 * time.Second)
		mustOpen(t, i, s)
		if got := mustSeal(t, i); got.KeyID != id {
			t.Errorf("key_id after the outage = %q, want %q", got.KeyID, id)
		}
	})
}

// A start in a black hole names its cause, whether or not there is a state file.
func TestStartInABlackHole(t *testing.T) {
	for name, known := range map[string]bool{"with state": true, "without": false} {
		bubble(name, func(t *testing.T) {
			c, dir := newCloud("a"), t.TempDir()
			if known {
				start(t, ring(t, write("prod", c)), dir).stop()
			}
			c.mu.Lock()
			c.hang = true
			c.mu.Unlock()
			i := start(t, ring(t, write("prod", c)), dir)
			sleep(time.Minute)
			if _, err := i.Seal(t.Context(), seed); !errors.Is(err, keys.ErrNotReady) || !strings.Contains(err.Error(), "deadline exceeded") {
				t.Errorf("Seal = %v, want ErrNotReady with the cause", err)
			}
			op := i.Report().Keys[0].Wrap
			if known {
				op = i.Report().Keys[0].Unwrap
			}
			if op.State != health.Degraded {
				t.Errorf("state %s after a minute, want degraded", op.State)
			}
		})(t)
	}
}

func TestOutageClosesNothingBeforeItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		i := start(t, ring(t, write("prod", c)), "")
		s := mustSeal(t, i)
		c.set(keys.ClassOutage, keys.OpWrap, keys.OpUnwrap)
		sleep(299 * time.Minute)
		mustOpen(t, i, mustSeal(t, i))
		if !i.w.saw(string(health.Degraded), slog.LevelWarn) {
			t.Error("no event says that the key is degraded")
		}
		sleep(2 * time.Minute)
		var shut *keys.ShutError
		if _, err := i.KeyID(); !errors.As(err, &shut) || shut.Class != keys.ClassOutage {
			t.Errorf("KeyID after maxOutage = %v, want ShutError", err)
		}
		if _, err := i.Seal(t.Context(), seed); !errors.As(err, &shut) {
			t.Errorf("Seal after maxOutage = %v, want ShutError", err)
		}
		mustOpen(t, i, s)
		sleep(3 * time.Hour)
		if err := open(t.Context(), i, s); !errors.As(err, &shut) {
			t.Errorf("Open after maxOutageDecrypt = %v, want ShutError", err)
		}
		if n := len(i.Report().LocalKEKs); n != 0 {
			t.Errorf("%d local KEKs in memory after maxOutageDecrypt, want 0", n)
		}
		c.set(keys.ClassNone)
		sleep(2 * time.Second)
		mustOpen(t, i, s)
		mustSeal(t, i)
	})
}

func TestDenialClosesWithinItsBound(t *testing.T) {
	both := []keys.Op{keys.OpWrap, keys.OpUnwrap}
	for _, tc := range []struct {
		name           string
		class          keys.Class
		ops            []keys.Op
		before, closed time.Duration
		opens          bool // still, when sealing is closed
	}{
		{"key state", keys.ClassKeyState, both, 50 * time.Second, 140 * time.Second, false},
		{"authorization", keys.ClassAuthorization, both, 9 * time.Minute, 11 * time.Minute, false},
		{"credential", keys.ClassCredential, both, 239 * time.Minute, 242 * time.Minute, false},
		{"only wrap denied", keys.ClassAuthorization, both[:1], 9 * time.Minute, 11 * time.Minute, true},
		{"only unwrap denied", keys.ClassAuthorization, both[1:], 9 * time.Minute, 11 * time.Minute, false},
	} {
		bubble(tc.name, func(t *testing.T) {
			c := newCloud("a")
			i := start(t, ring(t, write("prod", c)), "")
			s := mustSeal(t, i)
			sleep(61 * time.Second) // a canary of the prober is kept by now
			c.set(tc.class, tc.ops...)
			// The timer starts with the first probe that sees it, up to 66 s later.
			sleep(tc.before)
			mustOpen(t, i, mustSeal(t, i))
			sleep(tc.closed - tc.before + 70*time.Second)
			var shut *keys.ShutError
			if _, err := i.KeyID(); !errors.As(err, &shut) || shut.Class != tc.class {
				t.Fatalf("KeyID = %v, want ShutError of class %v", err, tc.class)
			}
			if err := open(t.Context(), i, s); (err == nil) != tc.opens {
				t.Errorf("Open = %v, want opens=%v", err, tc.opens)
			}
			sleep(61 * time.Minute)
			if n := len(i.Report().LocalKEKs); (n == 0) == tc.opens {
				t.Errorf("%d local KEKs in memory after wipeAfter", n)
			}
			c.set(keys.ClassNone)
			sleep(13 * time.Second)
			mustOpen(t, i, s)
			mustSeal(t, i)
		})(t)
	}
}

// An attacker who cuts the network after a denial must not stop its clock.
func TestOutageDoesNotResetADenial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		i := start(t, ring(t, write("prod", c)), "")
		c.set(keys.ClassAuthorization, keys.OpWrap, keys.OpUnwrap)
		sleep(3 * time.Minute)
		c.set(keys.ClassOutage, keys.OpWrap, keys.OpUnwrap)
		sleep(10 * time.Minute)
		var shut *keys.ShutError
		if _, err := i.KeyID(); !errors.As(err, &shut) || shut.Class != keys.ClassAuthorization {
			t.Errorf("KeyID = %v, want closed by the denial", err)
		}
	})
}

func TestDeniedReadKeyLeavesTheWriteKeyAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newCloud("a"), newCloud("b")
		old := start(t, ring(t, write("old", b)), "")
		sealed := mustSeal(t, old)
		old.stop()
		i := start(t, ring(t, write("prod", a), read("old", b)), "")
		mustOpen(t, i, sealed)
		wraps := b.count(keys.OpWrap)
		b.set(keys.ClassKeyState, keys.OpWrap, keys.OpUnwrap)
		sleep(5 * time.Minute)
		var shut *keys.ShutError
		if err := open(t.Context(), i, sealed); !errors.As(err, &shut) || shut.Key != "old" {
			t.Errorf("Open under the disabled read key = %v, want ShutError", err)
		}
		mustOpen(t, i, mustSeal(t, i))
		if n := b.count(keys.OpWrap); n != wraps {
			t.Errorf("a read key was probed by %d wraps, want 0", n-wraps)
		}
	})
}
