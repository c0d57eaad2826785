package custody_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/custody"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/health"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

// cloud is a KMS key that really encrypts, one AES key for each material, and
// that can be made to fail.
type cloud struct {
	identity string
	mu       *sync.Mutex // shared by the regions of one key
	aeads    map[string]cipher.AEAD
	material string // in use for wraps
	view     func(call int) string
	fail     map[keys.Op]error
	hang     bool
	slow     time.Duration // before each answer
	calls    map[keys.Op]int
	bound    []string // types of the contexts seen
	anchors  []string // "<type> <anchor>" of those with an anchor
}

func newCloud(name string) *cloud {
	c := &cloud{identity: "test:" + name, mu: &sync.Mutex{}, aeads: map[string]cipher.AEAD{}, fail: map[keys.Op]error{}, calls: map[keys.Op]int{}}
	c.rotate("m1")
	return c
}

func (c *cloud) rotate(material string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	b, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	g, err := cipher.NewGCMWithRandomNonce(b)
	if err != nil {
		panic(err)
	}
	c.aeads[material], c.material = g, material
}

func (c *cloud) set(class keys.Class, ops ...keys.Op) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.fail)
	for _, op := range ops {
		if class != keys.ClassNone {
			c.fail[op] = &keys.Error{Class: class, Op: op, Key: c.identity, Code: "Faked"}
		}
	}
}

func (c *cloud) delay(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slow = d
}

func (c *cloud) count(op keys.Op) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[op]
}

func (c *cloud) Identity() string { return c.identity }

func (c *cloud) begin(ctx context.Context, op keys.Op, bound keys.Context) error {
	c.mu.Lock()
	c.calls[op]++
	c.bound = append(c.bound, bound[keys.ContextType])
	if a := bound[keys.ContextAudit]; a != "" {
		c.anchors = append(c.anchors, string(op)+" "+bound[keys.ContextType]+" "+a)
	}
	err, hang, slow := c.fail[op], c.hang, c.slow
	c.mu.Unlock()
	time.Sleep(slow)
	if hang {
		<-ctx.Done()
		return &keys.Error{Class: keys.ClassOutage, Op: op, Key: c.identity, Err: ctx.Err()}
	}
	return err
}

func (c *cloud) Wrap(ctx context.Context, p keys.Secret, bound keys.Context) (keys.Wrapped, error) {
	if err := c.begin(ctx, keys.OpWrap, bound); err != nil {
		return keys.Wrapped{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.material
	if c.view != nil {
		m = c.view(c.calls[keys.OpWrap])
	}
	return keys.Wrapped{Blob: append([]byte(m+"|"), c.aeads[m].Seal(nil, nil, p, bound.Canonical())...)}, nil
}

func (c *cloud) Unwrap(ctx context.Context, blob []byte, bound keys.Context) (keys.Unwrapped, error) {
	if err := c.begin(ctx, keys.OpUnwrap, bound); err != nil {
		return keys.Unwrapped{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m, sealed, _ := bytes.Cut(blob, []byte("|"))
	refuse := &keys.Error{Class: keys.ClassData, Op: keys.OpUnwrap, Key: c.identity, Code: "InvalidCiphertext"}
	a := c.aeads[string(m)]
	if a == nil {
		return keys.Unwrapped{}, refuse
	}
	p, err := a.Open(nil, nil, sealed, bound.Canonical())
	if err != nil {
		return keys.Unwrapped{}, refuse
	}
	return keys.Unwrapped{Plaintext: p, Material: string(m), RequestID: "req"}, nil
}

// watcher remembers what custody told.
type watcher struct {
	mu      sync.Mutex
	events  []custody.Event
	results map[string]int
	retired int
}

func (w *watcher) Event(e custody.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

func (w *watcher) CacheResult(r string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.results == nil {
		w.results = map[string]int{}
	}
	w.results[r]++
}

func (w *watcher) RetiredOpen(string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.retired++
}
func (w *watcher) Changed() {}

func (w *watcher) saw(kind string, level slog.Level) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.events, func(e custody.Event) bool { return e.Kind == kind && e.Level == level })
}

var tuning = custody.Tuning{
	Suite:         testSuite(),
	ProbeInterval: time.Minute, Observations: 3, SettleTime: 5 * time.Minute, ReadableFor: 10 * time.Minute,
	Limits: health.Limits{MaxOutage: 5 * time.Hour, MaxOutageDecrypt: 8 * time.Hour, KeyState: time.Minute,
		Authorization: 10 * time.Minute, Credential: 4 * time.Hour, WipeAfter: time.Hour},
}

// instance is a running custodian.
type instance struct {
	*custody.Custodian
	w    *watcher
	stop func()
}

func ring(t *testing.T, entries ...keys.Entry) *keys.Ring {
	t.Helper()
	return ringFor(t, "prod", keys.WrapLocalKEK, entries...)
}

func ringFor(t *testing.T, cluster string, w keys.Wrapping, entries ...keys.Entry) *keys.Ring {
	t.Helper()
	r, err := keys.NewRing(cluster, w, entries...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func write(name string, c *cloud) keys.Entry {
	return keys.Entry{Name: name, Role: keys.RoleWrite, Generation: 1, KEK: c}
}

func read(name string, c *cloud) keys.Entry {
	return keys.Entry{Name: name, Role: keys.RoleRead, Generation: 1, KEK: c}
}

func start(t *testing.T, r *keys.Ring, dir string) *instance {
	t.Helper()
	w := &watcher{}
	return startWith(t, w, custody.Config{Ring: r, Tuning: tuning, StateDir: dir, Observer: w})
}

func startWith(t *testing.T, w *watcher, config custody.Config) *instance {
	t.Helper()
	c, err := custody.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	i := &instance{Custodian: c, w: w, stop: func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}}
	t.Cleanup(i.stop)
	synctest.Wait()
	return i
}

func mustKeyID(t *testing.T, i *instance) string {
	t.Helper()
	id, err := i.KeyID()
	if err != nil {
		t.Fatalf("KeyID: %v", err)
	}
	return id
}

var seed = keys.Secret(strings.Repeat("S", 32))

func mustSeal(t *testing.T, i *instance) plugin.Sealed {
	t.Helper()
	s, err := i.Seal(t.Context(), seed)
	if err != nil {
		t.Fatalf("Seal: %v", err)
	}
	return s
}

func open(ctx context.Context, i *instance, s plugin.Sealed) error {
	got, _, err := i.Open(ctx, plugin.OpenRequest{KeyID: s.KeyID, Ciphertext: s.Ciphertext, Annotations: s.Annotations})
	if err == nil && !bytes.Equal(got, seed) {
		return errors.New("opened to other bytes")
	}
	return err
}

func mustOpen(t *testing.T, i *instance, s plugin.Sealed) {
	t.Helper()
	if err := open(t.Context(), i, s); err != nil {
		t.Fatalf("Open: %v", err)
	}
}

// bubble runs a test on a fake clock.
func bubble(name string, f func(t *testing.T)) func(*testing.T) {
	return func(t *testing.T) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
}

func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

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

func TestHostileInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		r := ring(t, write("prod", c))
		other := start(t, r, "")
		good, second := mustSeal(t, other), mustSeal(t, other)
		sleep(61 * time.Second)
		foreign := start(t, ringFor(t, "other-cluster", keys.WrapLocalKEK, write("prod", c)), "")
		alien := mustSeal(t, foreign)
		direct := start(t, ringFor(t, "prod", keys.WrapDirect, write("prod", c)), "")
		seedBlob := mustSeal(t, direct)
		header := good.Annotations[envelope.AnnotationKey]
		with := func(change func(*plugin.Sealed)) plugin.Sealed {
			s := good
			s.Ciphertext = bytes.Clone(good.Ciphertext)
			s.Annotations = map[string][]byte{envelope.AnnotationKey: bytes.Clone(header)}
			change(&s)
			return s
		}
		edit := func(change func(*envelope.Header)) plugin.Sealed {
			h, err := envelope.Parse(header)
			if err != nil {
				t.Fatal(err)
			}
			change(h)
			raw, err := h.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			return with(func(s *plugin.Sealed) {
				s.Annotations[envelope.AnnotationKey] = raw
				s.KeyID = keys.KeyID("prod", h.Facts("prod"))
			})
		}
		probe := envelope.MarshalPlain(keys.BlobProbe, make([]byte, 32))
		wrapAs := func(typ keys.BlobType, plain keys.Secret) []byte {
			w, err := c.Wrap(t.Context(), plain, keys.NewContext("prod", typ, nil))
			if err != nil {
				t.Fatal(err)
			}
			return w.Blob
		}
		for name, tc := range map[string]struct {
			s    plugin.Sealed
			want error
		}{
			"no annotation":        {with(func(s *plugin.Sealed) { s.Annotations = nil }), keys.ErrMalformed},
			"unknown annotation":   {with(func(s *plugin.Sealed) { s.Annotations["x.example.com"] = nil }), keys.ErrMalformed},
			"key_id of nobody":     {with(func(s *plugin.Sealed) { s.KeyID = "nobody" }), keys.ErrMalformed},
			"key_id of others":     {with(func(s *plugin.Sealed) { s.KeyID = "prod:" + strings.Repeat("0", 32) }), keys.ErrContradiction},
			"ciphertext swapped":   {with(func(s *plugin.Sealed) { s.Ciphertext = seedBlob.Ciphertext }), keys.ErrMalformed},
			"ciphertext flipped":   {with(func(s *plugin.Sealed) { s.Ciphertext[9] ^= 1 }), keys.ErrContradiction},
			"header flipped":       {with(func(s *plugin.Sealed) { s.Annotations[envelope.AnnotationKey][60] ^= 1 }), nil},
			"header of another":    {with(func(s *plugin.Sealed) { s.Annotations = seedBlob.Annotations }), nil},
			"another cluster":      {alien, keys.ErrContradiction},
			"unknown KEK":          {edit(func(h *envelope.Header) { h.Identity = "test:zzz" }), keys.ErrUnknownKey},
			"other context":        {edit(func(h *envelope.Header) { h.Context[0] ^= 1 }), keys.ErrUnknownKey},
			"generation lied":      {edit(func(h *envelope.Header) { h.Generation = 9 }), nil},
			"material lied":        {edit(func(h *envelope.Header) { h.Material = "m9" }), keys.ErrContradiction},
			"local KEK id lied":    {edit(func(h *envelope.Header) { h.LocalKEK[0] ^= 1 }), keys.ErrContradiction},
			"stanza replaced":      {edit(func(h *envelope.Header) { h.Wrapped = []byte("m1|junk") }), nil},
			"probe as local KEK":   {edit(func(h *envelope.Header) { h.Wrapped = wrapAs(keys.BlobProbe, probe) }), nil},
			"probe in local's ctx": {edit(func(h *envelope.Header) { h.Wrapped = wrapAs(keys.BlobLocalKEK, probe) }), keys.ErrMalformed},
			"seed as local KEK":    {edit(func(h *envelope.Header) { h.Wrapped = seedBlob.Ciphertext[2:] }), nil},
			"recipient added": {edit(func(h *envelope.Header) {
				h.Recipients = []envelope.Recipient{{Identity: "test:b", Wrapped: []byte("x")}}
			}), nil},
		} {
			for who, i := range map[string]*instance{"fresh": start(t, r, ""), "knows it": other} {
				if err := open(t.Context(), i, tc.s); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
					t.Errorf("%s, %s: Open = %v, want %v", name, who, err, tc.want)
				}
			}
		}
		// A local KEK or a probe presented as a seed: never an answer.
		h, err := envelope.Parse(seedBlob.Annotations[envelope.AnnotationKey])
		if err != nil {
			t.Fatal(err)
		}
		local, err := envelope.Parse(header)
		if err != nil {
			t.Fatal(err)
		}
		for name, blob := range map[string][]byte{
			"local KEK as seed": local.Wrapped, "probe as seed": wrapAs(keys.BlobProbe, probe),
			"local KEK in seed's ctx": wrapAs(keys.BlobSeed, envelope.MarshalPlain(keys.BlobLocalKEK, make([]byte, 32))),
			"seed of another header":  wrapAs(keys.BlobSeed, envelope.MarshalPlain(keys.BlobSeed, make([]byte, 64))),
		} {
			s := plugin.Sealed{KeyID: keys.KeyID("prod", h.Facts("prod")), Ciphertext: envelope.Frame(keys.BlobSeed, blob), Annotations: seedBlob.Annotations}
			got, _, err := direct.Open(t.Context(), plugin.OpenRequest{KeyID: s.KeyID, Ciphertext: s.Ciphertext, Annotations: s.Annotations})
			if err == nil {
				t.Errorf("%s: opened %d bytes", name, len(got))
			}
		}
		// Two objects' ciphertexts under one header are both ours: they swap
		// freely at this layer, kube-apiserver's etcd key binds each to its place.
		mustOpen(t, other, second)
	})
}

func TestDirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		r := ringFor(t, "prod", keys.WrapDirect, write("prod", c))
		i := start(t, r, "")
		s := mustSeal(t, i)
		mustOpen(t, start(t, r, ""), s)
		if n := len(i.Report().LocalKEKs); n != 0 {
			t.Errorf("wrapping direct keeps %d local KEKs in memory", n)
		}
		// Data of the other wrapping opens too.
		local := start(t, ring(t, write("prod", c)), "")
		l := mustSeal(t, local)
		if l.KeyID == s.KeyID {
			t.Error("both wrappings have one key_id")
		}
		mustOpen(t, i, l)
		mustOpen(t, local, s)

		c.rotate("m2")
		if _, err := i.Seal(t.Context(), seed); !errors.Is(err, keys.ErrNotReady) {
			t.Errorf("Seal by new material under the old key_id = %v, want ErrNotReady", err)
		}
		sleep(5 * time.Minute)
		next := mustSeal(t, i)
		if next.KeyID == s.KeyID {
			t.Error("key_id did not follow the rotation")
		}
		mustOpen(t, i, s)
	})
}

func TestContextTypes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		i := start(t, ring(t, write("prod", c)), "")
		sleep(67 * time.Second)
		_ = i
		c.mu.Lock()
		defer c.mu.Unlock()
		if got := fmt.Sprint(c.bound); got != "[local-kek local-kek probe probe]" {
			t.Errorf("encryption contexts of the calls = %s", got)
		}
	})
}

// A probe carries the end of the audit log into the KMS, in both of its calls, and
// nothing else does. The blob that is kept for a key that only reads has none, so that
// a release which knows no anchors takes up the state file.
func TestAnchor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, other := newCloud("a"), newCloud("b")
		n, dir := 0, t.TempDir()
		w := &watcher{}
		i := startWith(t, w, custody.Config{Ring: ring(t, write("prod", c)), Tuning: tuning, StateDir: dir, Observer: w,
			Anchor: func() string { n++; return fmt.Sprint("anchor-", n) }})
		mustOpen(t, i, mustSeal(t, i))
		sleep(70 * time.Second)
		if got := strings.Join(c.anchors, "; "); got != "wrap probe anchor-1; unwrap probe anchor-1" {
			t.Fatalf("the KMS saw %q", got)
		}
		i.stop()
		c.mu.Lock()
		c.anchors, c.bound = nil, nil
		c.mu.Unlock()
		if raw, err := os.ReadFile(filepath.Join(dir, "state.json")); err != nil || strings.Contains(string(raw), "anchor") {
			t.Errorf("the state file is not as the release before reads it: %s, %v", raw, err)
		}
		startWith(t, w, custody.Config{Ring: ring(t, write("next", other), read("prod", c)), Tuning: tuning, StateDir: dir, Force: true, Observer: w})
		sleep(200 * time.Second)
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.anchors) > 0 || len(c.bound) < 2 || slices.ContainsFunc(c.bound, func(b string) bool { return b != "local-kek" }) {
			t.Errorf("the KMS saw %q, %v of a read key", c.anchors, c.bound)
		}
		if len(other.anchors) > 0 {
			t.Errorf("anchors %q without any", other.anchors)
		}
	})
}
