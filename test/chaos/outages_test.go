//go:build e2e

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	kmsapi "k8s.io/kms/apis/v2"
)

// An hour of outages is compressed by probe intervals of half a second instead of a
// minute: what is an hour there is 30 s here. maxOutage is longer than any of these
// outages, also where an API server takes a minute to start in one.
const compressed = "health: {maxOutage: 3m, maxOutageDecrypt: 6m, keyState: 2s, wipeAfter: 1s}\n"

// outages are those faults of the matrix that take the cloud away from every plugin.
func outages() (out []fault) {
	for _, f := range faults {
		if f.cold && !f.mounts {
			out = append(out, f)
		}
	}
	return out
}

// A real cluster lives through an hour of outages, of every kind, with API servers that
// restart in them: no request of the bystander fails. Then the key is taken away, and
// nothing opens after the bound that was promised.
func TestHourOfOutagesThenRevoked(t *testing.T) {
	s := newStage(t, 2, 1, compressed)
	b := s.watch()
	x := &cell{t: t, s: s}
	kinds := outages()
	x.wellAgain(b, 60*time.Second) // each plugin has met what the other seals with
	begun, n := time.Now(), 0
	for ; time.Since(begun) < 45*time.Second || n < len(kinds); n++ { // a real hour is 30 s
		f := kinds[n%len(kinds)]
		f.inject(x)
		lasts := time.After(time.Duration(2+n%3) * time.Second)
		if n%4 == 1 {
			x.stopAPIServer()
			x.startAPIServer()
			if !x.waitAPIServer(90 * time.Second) {
				t.Fatalf("no API server in %s", f.name)
			}
		}
		<-lasts
		f.heal(x)
		x.wellAgain(b, 30*time.Second)
	}
	b.stop()
	c := b.next()
	t.Logf("%d outages in %s: %s", n, time.Since(begun).Round(time.Second), c)
	c.blame(t)
	s.revoked(t, b)
}

// bound is a revocation bound as the first plugin exports it.
func (s *stage) bound(class string) (d time.Duration) {
	s.t.Helper()
	text, err := s.p[0].Get(s.t.Context(), "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	seconds := 0.0
	for line := range strings.Lines(text) {
		_, _ = fmt.Sscanf(line, `kms_plugin_revocation_bound_seconds{class="`+class+`"} %g`, &seconds) // other lines are not it
	}
	if seconds == 0 {
		s.t.Fatalf("no revocation bound of class %s", class)
	}
	return time.Duration(seconds * float64(time.Second))
}

// revoked disables the key and measures when the last seed was opened and sealed.
func (s *stage) revoked(t *testing.T, b *bystander) {
	t.Helper()
	bound := s.bound("key-state")
	at := time.Now()
	s.cloud.SetState(s.arn, "Disabled")
	var opened, sealed time.Time
	for time.Since(at) < bound+5*time.Second {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		if _, err := s.kms(0).Decrypt(ctx, &kmsapi.DecryptRequest{Uid: "chaos", KeyId: b.kept.KeyID, Ciphertext: b.kept.DEKSource, Annotations: b.kept.Annotations}); err == nil {
			opened = time.Now()
		}
		if _, err := s.kms(0).Encrypt(ctx, &kmsapi.EncryptRequest{Uid: "chaos", Plaintext: make([]byte, 32)}); err == nil {
			sealed = time.Now()
		}
		cancel()
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("the last seed was opened %s after the key was disabled, the last sealed %s; the bound is %s", opened.Sub(at).Round(time.Millisecond), sealed.Sub(at).Round(time.Millisecond), bound)
	if opened.IsZero() || opened.Sub(at) > bound || sealed.Sub(at) > bound {
		t.Error("the bound is not kept")
	}
	within(t, 10*time.Second, "nothing is in memory", s.shows(0, "kms_plugin_local_keks 0"))
	if _, err := s.status(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "key-state") {
		t.Errorf("Status is %v", err)
	}
	// What an API server holds already no plugin reaches; a restart ends that.
	if err := errors.Join(s.a[0].Stop(), s.a[0].RestartUnready(t.Context())); err != nil {
		t.Logf("the API server does not even live: %v", err)
	}
	if _, err := s.a[0].GetSecret(t.Context(), "kept"); err == nil {
		t.Error("a restarted API server reads a Secret under a disabled key")
	}
}

// TestSoak is at least twenty minutes of faults; CHAOS_SOAK says how long. What the
// plugins hold in the end must be what they held after the first round.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("CHAOS_SOAK"))
	if err != nil {
		t.Skip("CHAOS_SOAK=20m runs it")
	}
	s := newStage(t, 2, 1, "")
	b := s.watch()
	x := &cell{t: t, s: s}
	kinds := slices.DeleteFunc(slices.Clone(faults), func(f fault) bool {
		return f.regions > 1 || f.mounts && !apart() || f.stopped != nil || f.name == "DNS gone"
	})
	met(x)
	var first, last [2]vitals
	begun := time.Now()
	for n := 0; time.Since(begun) < length; n++ {
		f := kinds[n%len(kinds)]
		f.inject(x)
		time.Sleep(5 * time.Second)
		f.heal(x)
		x.wellAgain(b, 60*time.Second)
		if n%len(kinds) == len(kinds)-1 {
			for i := range last {
				last[i] = s.vitals(i)
			}
			if first[0].rss == 0 {
				first = last
			}
			t.Logf("after %s: %+v", time.Since(begun).Round(time.Second), last)
		}
	}
	b.stop()
	c := b.next()
	t.Logf("%s: %s", time.Since(begun).Round(time.Second), c)
	c.blame(t)
	for i := range last {
		if last[i].rss > first[i].rss*3/2 || last[i].goroutines > first[i].goroutines+20 || last[i].files > first[i].files+20 {
			t.Errorf("plugin %d grew from %+v to %+v", i+1, first[i], last[i])
		}
	}
}
