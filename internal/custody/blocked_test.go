package custody_test

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/custody"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/localkek"
)

// A write key whose adoption waits for a co-recipient is probed as ever, with its anchor,
// new material behind it is seen, and the state written: after a crash in that time its
// last good answer must not be an old one.
func TestProbedWhileARecipientIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, dir, w := newCloud("a"), newCloud("b"), t.TempDir(), &watcher{}
		r := ring(t, also("a", a, "b"), read("b", b))
		i := startWith(t, w, custody.Config{Ring: r, Tuning: tuning, StateDir: dir, Observer: w, Anchor: func() string { return "end" }})
		first := mustKeyID(t, i)
		b.set(keys.ClassOutage, both...)
		next := tuning
		next.Suite = localkek.AES // the one in use already, where there is only one: m2 is left to be due
		if err := i.Replace(r, next); err != nil {
			t.Fatal(err)
		}
		for _, material := range []string{"m1", "m2"} { // also when that is due
			if material == "m2" {
				a.rotate(material)
			}
			sleep(30 * time.Minute)
			if err := os.Remove(filepath.Join(dir, "state.json")); err != nil {
				t.Fatal(err)
			}
			a.mu.Lock()
			a.anchors = nil
			a.mu.Unlock()
			sleep(3 * time.Minute)
			if _, err := os.Stat(filepath.Join(dir, "state.json")); err != nil {
				t.Errorf("%s: the state is not written any more: %v", material, err)
			}
			a.mu.Lock()
			if len(a.anchors) == 0 {
				t.Errorf("%s: no probe carried the anchor", material)
			}
			a.mu.Unlock()
		}
		if got := mustSeal(t, i).KeyID; got != first {
			t.Errorf("key_id turned to %q without the co-recipient", got)
		}
		b.set(keys.ClassNone)
		sleep(time.Minute)
		if got := mustSeal(t, i).KeyID; got == first {
			t.Error("key_id did not turn once the co-recipient was back")
		}
	})
}
