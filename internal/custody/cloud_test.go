package custody_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/custody"
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
