package custody_test

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
)

// New material of the key waits for the co-recipient too.
func TestRotationWithARecipientAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newCloud("a"), newCloud("b")
		i := start(t, ring(t, also("a", a, "b"), read("b", b)), "")
		first := mustKeyID(t, i)
		b.set(keys.ClassOutage, both...)
		a.rotate("m2")
		sleep(time.Hour)
		if got := mustSeal(t, i).KeyID; got != first {
			t.Fatalf("key_id turned to %q without the co-recipient", got)
		}
		if !i.w.saw("activate", slog.LevelError) {
			t.Error("nobody was told why")
		}
		b.set(keys.ClassNone)
		sleep(time.Minute)
		s := mustSeal(t, i)
		if s.KeyID == first {
			t.Fatal("key_id did not turn once the co-recipient was back")
		}
		b.rotate("m9") // of no account: its material is not in key_id
		sleep(time.Hour)
		if got := mustKeyID(t, i); got != s.KeyID {
			t.Errorf("new material of a co-recipient changed key_id")
		}
		mustOpen(t, i, s)
	})
}

// A cold restart while the key is away is served by the co-recipient.
func TestRestartInAnOutageOfTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, dir := newCloud("a"), newCloud("b"), t.TempDir()
		i := start(t, ring(t, also("a", a, "b"), read("b", b)), dir)
		s := mustSeal(t, i)
		i.stop()
		a.silent(true)
		i = start(t, ring(t, also("a", a, "b"), read("b", b)), dir)
		sleep(6 * time.Second)
		mustOpen(t, i, s)
		if got := mustSeal(t, i); got.KeyID != s.KeyID || !slices.Equal(got.Annotations[envelope.AnnotationKey], s.Annotations[envelope.AnnotationKey]) {
			t.Errorf("sealed under %q, want %q and the same local KEK", got.KeyID, s.KeyID)
		}
		soon := tuning
		soon.Limits.MaxOutage, soon.Limits.MaxOutageDecrypt = 10*time.Minute, 20*time.Minute
		if err := i.Replace(ring(t, also("a", a, "b"), read("b", b)), soon); err != nil {
			t.Fatal(err)
		}
		sleep(8 * time.Minute)
		mustOpen(t, i, mustSeal(t, i))
		sleep(3 * time.Minute) // the write key's own maxOutage
		var shut *keys.ShutError
		if _, err := i.KeyID(); !errors.As(err, &shut) {
			t.Errorf("KeyID after maxOutage of the key = %v, want ShutError", err)
		}
		sleep(20 * time.Minute) // and its maxOutageDecrypt: the co-recipient still opens
		mustOpen(t, i, s)
	})
}

// Taken away means taken away everywhere: sealing ends with the key, opening with
// the last of its recipients.
func TestKeyTakenAwayFromARecipientToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newCloud("a"), newCloud("b")
		i := start(t, ring(t, also("a", a, "b"), read("b", b)), "")
		s := mustSeal(t, i)
		sleep(61 * time.Second)
		a.set(keys.ClassKeyState, both...)
		sleep(4 * time.Minute)
		var shut *keys.ShutError
		if _, err := i.Seal(t.Context(), seed); !errors.As(err, &shut) || shut.Key != "a" {
			t.Errorf("Seal under the disabled key = %v, want ShutError", err)
		}
		mustOpen(t, i, s)
		sleep(2 * time.Hour)
		if n := len(i.Report().LocalKEKs); n != 1 {
			t.Errorf("%d local KEKs in memory, want the one that b opens", n)
		}
		mustOpen(t, i, s)
		b.set(keys.ClassKeyState, both...)
		sleep(4 * time.Minute)
		if err := open(t.Context(), i, s); !errors.As(err, &shut) {
			t.Errorf("Open with both disabled = %v, want ShutError", err)
		}
		sleep(2 * time.Hour)
		if n := len(i.Report().LocalKEKs); n != 0 {
			t.Errorf("%d local KEKs in memory after both are gone, want 0", n)
		}
		b.set(keys.ClassNone)
		sleep(15 * time.Second)
		mustOpen(t, i, s)
		a.set(keys.ClassNone)
		sleep(15 * time.Second)
		mustOpen(t, i, mustSeal(t, i))
	})
}

// A co-recipient that is taken away is told of, and stops nothing.
func TestRecipientTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newCloud("a"), newCloud("b")
		i := start(t, ring(t, also("a", a, "b"), read("b", b)), "")
		s := mustSeal(t, i)
		wraps := b.count(keys.OpWrap)
		sleep(5 * time.Minute)
		if b.count(keys.OpWrap) == wraps {
			t.Error("the co-recipient is not probed by wrapping")
		}
		b.set(keys.ClassKeyState, both...)
		sleep(5 * time.Hour)
		mustOpen(t, i, mustSeal(t, i))
		mustOpen(t, start(t, ring(t, write("a", a), read("b", b)), ""), s)
		if k := unwrapOf(t, i, "b"); !k.Unwrap.OpenShut || !i.w.saw("closed", slog.LevelError) {
			t.Errorf("report %+v of a disabled co-recipient", k)
		}
	})
}
