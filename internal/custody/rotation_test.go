package custody_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/custody"
	"kms-plugin.io/pkg/keys"
)

func TestSameARNRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dir := newCloud("a"), t.TempDir()
		i := start(t, ring(t, write("prod", c)), dir)
		first, s := mustKeyID(t, i), mustSeal(t, i)
		c.rotate("m2")
		sleep(3 * time.Minute)
		if got := mustKeyID(t, i); got != first {
			t.Fatalf("key_id changed after %s, want the settle time of 5m kept", 3*time.Minute)
		}
		sleep(5 * time.Minute)
		second := mustKeyID(t, i)
		if second == first || !strings.HasPrefix(second, "prod:") {
			t.Fatalf("key_id %q after the rotation, was %q", second, first)
		}
		mustOpen(t, i, s)
		mustOpen(t, i, mustSeal(t, i))

		// The cloud steps back: key_id must not.
		c.mu.Lock()
		c.material = "m1"
		c.mu.Unlock()
		sleep(time.Hour)
		if got := mustKeyID(t, i); got != second {
			t.Errorf("key_id went back to %q", got)
		}
		i.stop()
		c.mu.Lock()
		c.material = "m2"
		c.mu.Unlock()
		again := start(t, ring(t, write("prod", c)), dir)
		if got := mustKeyID(t, again); got != second {
			t.Errorf("key_id after a restart = %q, want %q", got, second)
		}
	})
}

// A fresh instance opens new material before its own prober has adopted it.
func TestTwoViewsOfARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		lag := start(t, ring(t, write("prod", c)), "")
		old := mustSeal(t, lag)
		c.rotate("m2")
		ahead := start(t, ring(t, write("prod", c)), "")
		s := mustSeal(t, ahead)
		if s.KeyID == old.KeyID {
			t.Fatal("new material has the old key_id")
		}
		mustOpen(t, lag, s)
		mustOpen(t, ahead, old)
	})
}

func TestFlappingMaterialIsNotAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		i := start(t, ring(t, write("prod", c)), "")
		id := mustKeyID(t, i)
		c.rotate("m2")
		c.mu.Lock()
		c.view = func(call int) string { return []string{"m1", "m2", "m2"}[call%3] }
		c.mu.Unlock()
		sleep(time.Hour)
		if got := mustKeyID(t, i); got != id {
			t.Errorf("key_id changed to %q while the cloud answers differ", got)
		}
	})
}

func TestActivateAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newCloud("a"), newCloud("b")
		i := start(t, ring(t, write("a", a)), t.TempDir())
		first := mustSeal(t, i)
		next := write("b", b)
		next.ActivateAt = time.Now().Add(time.Hour)
		if err := i.Replace(ring(t, write("a", a), next), tuning); err != nil {
			t.Fatalf("Replace: %v", err)
		}
		sleep(59 * time.Minute)
		if got := mustKeyID(t, i); got != first.KeyID {
			t.Fatalf("key_id turned before its time: %q", got)
		}
		sleep(2 * time.Minute)
		second := mustSeal(t, i)
		if !strings.HasPrefix(second.KeyID, "b:") {
			t.Fatalf("key_id after activateAt = %q", second.KeyID)
		}
		mustOpen(t, i, first)
		mustOpen(t, i, second)
	})
}

func TestNewKeyThatDoesNotWrapStaysOnTheOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newCloud("a"), newCloud("b")
		b.set(keys.ClassAuthorization, keys.OpWrap)
		i := start(t, ring(t, write("a", a)), "")
		next := write("b", b)
		next.ActivateAt = time.Now().Add(time.Hour)
		if err := i.Replace(ring(t, write("a", a), next), tuning); err != nil {
			t.Fatal(err)
		}
		sleep(2 * time.Hour)
		if id := mustKeyID(t, i); !strings.HasPrefix(id, "a:") {
			t.Errorf("key_id = %q, want still that of a", id)
		}
		if !i.w.saw("activate", slog.LevelError) {
			t.Error("nothing says that the new write key does not wrap")
		}
		b.set(keys.ClassNone)
		sleep(15 * time.Second)
		if id := mustKeyID(t, i); !strings.HasPrefix(id, "b:") {
			t.Errorf("key_id = %q, want that of b now", id)
		}
	})
}

func TestGuards(t *testing.T) {
	for name, tc := range map[string]struct {
		next func(t *testing.T, a, b *cloud) *keys.Ring
		want string
	}{
		"writes at once": {func(t *testing.T, a, b *cloud) *keys.Ring {
			n := write("b", b)
			n.ActivateAt = time.Now().Add(-time.Minute)
			return ring(t, read("a", a), n)
		}, "readable here for only 0s"},
		"dropped": {func(t *testing.T, a, b *cloud) *keys.Ring {
			n := write("b", b)
			n.ActivateAt = time.Now().Add(time.Hour)
			return ring(t, n)
		}, `key "a" (role write) is missing`},
	} {
		bubble(name, func(t *testing.T) {
			a, b := newCloud("a"), newCloud("b")
			i := start(t, ring(t, write("a", a)), t.TempDir())
			id := mustKeyID(t, i)
			err := i.Replace(tc.next(t, a, b), tuning)
			var g *custody.GuardError
			if !errors.As(err, &g) || !strings.Contains(g.Reason, tc.want) || g.Hint == "" {
				t.Fatalf("Replace = %v, want a GuardError with %q and a hint", err, tc.want)
			}
			sleep(time.Hour)
			if got := mustKeyID(t, i); got != id {
				t.Errorf("a refused ring changed key_id to %q", got)
			}
		})(t)
	}
}

func TestKeyIDIsNeverUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, dir := newCloud("a"), newCloud("b"), t.TempDir()
		i := start(t, ring(t, write("a", a)), dir)
		first := mustKeyID(t, i)
		if err := i.Replace(ring(t, write("a", a), read("b", b)), tuning); err != nil {
			t.Fatal(err)
		}
		sleep(11 * time.Minute)
		if err := i.Replace(ring(t, read("a", a), write("b", b)), tuning); err != nil {
			t.Fatal(err)
		}
		sleep(time.Minute)
		if id := mustKeyID(t, i); !strings.HasPrefix(id, "b:") {
			t.Fatalf("key_id = %q, want that of b", id)
		}
		back := ring(t, write("a", a), read("b", b))
		var g *custody.GuardError
		if err := i.Replace(back, tuning); !errors.As(err, &g) || !strings.Contains(g.Hint, "generation: 2") {
			t.Fatalf("A→B→A = %v, want a refusal that asks for generation 2", err)
		}
		i.stop()
		// Also at the next start: the journal is in the state file.
		if _, err := custody.New(custody.Config{Ring: back, Tuning: tuning, StateDir: dir, Observer: &watcher{}}); !errors.As(err, &g) {
			t.Fatalf("New with A again = %v, want a refusal", err)
		}
		e := write("a", a)
		e.Generation = 2
		i = start(t, ring(t, e, read("b", b)), dir)
		sleep(time.Minute)
		if id := mustKeyID(t, i); !strings.HasPrefix(id, "a:") || id == first {
			t.Errorf("key_id with generation 2 = %q, first was %q", id, first)
		}
	})
}

func TestRetiredKeyOpensAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newCloud("a"), newCloud("b")
		old := start(t, ring(t, write("b", b)), "")
		s := mustSeal(t, old)
		e := read("b", b)
		e.Role = keys.RoleRetired
		i := start(t, ring(t, write("a", a), e), t.TempDir())
		mustOpen(t, i, s)
		if i.w.retired != 1 {
			t.Errorf("%d opens under a retired key counted, want 1", i.w.retired)
		}
		var g *custody.GuardError
		if err := i.Replace(ring(t, write("a", a)), tuning); !errors.As(err, &g) || !strings.Contains(g.Reason, "opened a seed") {
			t.Fatalf("dropping it = %v, want a refusal", err)
		}
		sleep(25 * time.Hour)
		if err := i.Replace(ring(t, write("a", a)), tuning); err != nil {
			t.Fatalf("dropping it a day later: %v", err)
		}
		if err := open(t.Context(), i, s); !errors.Is(err, keys.ErrUnknownKey) {
			t.Errorf("Open under a dropped key = %v, want ErrUnknownKey", err)
		}
	})
}
