// Package custody keeps the keys of one running instance: which KEK writes,
// what key_id stands for it, the local KEKs in memory, and what may still be
// used when a KMS denies or does not answer. It implements plugin.Backend.
//
// Every RPC reads one immutable view. All changes are made by the probers, one
// goroutine for each key of the ring, which alone call a KMS by themselves; no
// RPC ever waits for a probe. Custody must not know gRPC, configuration files,
// Prometheus or any provider.
package custody

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"kms-plugin.io/internal/boottime"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/health"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/localkek"
	"kms-plugin.io/pkg/plugin"
)

// Tuning are the settings that a reload may change.
type Tuning struct {
	ProbeInterval time.Duration // between probes while all is well
	Observations  int           // equal sights of new material before it writes
	SettleTime    time.Duration // at least this long after its first sight
	ReadableFor   time.Duration // how long a key must have been readable here before it writes
	Limits        health.Limits
	Suite         localkek.Suite // of new local KEKs; 0 is XAES-256-GCM
}

// Config is what a Custodian starts with.
type Config struct {
	Ring     *keys.Ring
	Tuning   Tuning
	StateDir string // "" keeps no state
	Force    bool   // let the first ring pass the guards of Replace
	Observer Observer
	// Anchor is what a probe carries into the log of the KMS; nil or "" is nothing.
	// It must not block.
	Anchor func() string
}

// Event is one change worth a log line and an audit record.
type Event struct {
	Kind  string // short, stable: "activate", "close", "wipe", ...
	Level slog.Level
	Text  string // constant sentence
	Key   string // name of the ring entry
	KeyID string
	// Region is "" for what is not about one.
	Region string
	Err    error
}

// Observer is told what happens. Its methods must not block.
type Observer interface {
	Event(Event)
	// CacheResult counts how an Open found its local KEK: "hit", "miss",
	// "shared" (waited for another's unwrap), "failed-recently", "refused".
	CacheResult(result string)
	// RetiredOpen counts a seed opened under a retired key.
	RetiredOpen(key string)
	// Changed asks to read Report again.
	Changed()
}

// Custodian implements plugin.Backend.
type Custodian struct {
	observer Observer
	anchor   func() string
	clock    *boottime.Clock
	stateDir string
	cache    *unwrapper
	view     atomic.Pointer[view]
	started  time.Time

	mu      sync.Mutex // guards what follows; never held across a remote call
	tuning  Tuning
	memory  state.State // what the state file holds
	probers *errgroup.Group
	runCtx  context.Context
	saved   time.Time // last try to write the state file
	saveErr error
}

var _ plugin.Backend = (*Custodian)(nil)

// view is what RPCs read. It is immutable; a change swaps the pointer.
type view struct {
	ring   *keys.Ring
	held   map[*keys.Entry]*held
	active *active // nil while no key_id is known
}

// held is an entry of the ring with its life. It outlives reloads that keep the
// same KEK and encryption context.
type held struct {
	entry  atomic.Pointer[keys.Entry]
	health *health.Key
	wake   chan struct{} // capacity 1: probe now
	stop   context.CancelFunc

	readableSince time.Time    // guarded by Custodian.mu
	lastOpened    atomic.Int64 // Unix seconds, 0 never
	kept          atomic.Pointer[state.Kept]
	candidate     candidate // of the prober alone
	blocked       atomic.Pointer[blocked]
	lastState     map[keys.Op]health.State
	regions       regionLog // of a key that has several
}

// active is what Status reports and Encrypt uses: both come from one pointer.
type active struct {
	held        *held
	entry       *keys.Entry
	material    string
	keyID       string
	refs        []kekRef // KEK and co-recipients, as in the header
	header      []byte
	digest      [32]byte
	suite       envelope.Suite
	annotations map[string][]byte
	kind        keys.BlobType // of the seeds under this header
	local       *localkek.Key // nil: wrapping direct, or wrapped only and not in memory
	detail      plugin.Detail
}

// New builds a custodian: it reads the state file, calls no KMS and starts no
// goroutine. Run does.
func New(c Config) (*Custodian, error) {
	k := &Custodian{
		observer: c.Observer, anchor: c.Anchor, clock: boottime.New(), stateDir: c.StateDir,
		tuning: c.Tuning, started: time.Now(),
	}
	if k.anchor == nil {
		k.anchor = func() string { return "" }
	}
	k.cache = newUnwrapper()
	k.loadState(c.Ring.ClusterID())
	v, err := k.plan(c.Ring, c.Force)
	if err != nil {
		return nil, err
	}
	v.active = k.remembered(v)
	k.view.Store(v)
	return k, nil
}

// Run probes until ctx ends, then saves the state.
func (k *Custodian) Run(ctx context.Context) error {
	k.mu.Lock()
	k.probers, k.runCtx = &errgroup.Group{}, ctx
	for _, h := range k.view.Load().held {
		k.start(h)
	}
	k.mu.Unlock()
	<-ctx.Done()
	err := k.probers.Wait()
	k.saveState()
	return err
}

// start runs the prober of one key; the caller holds mu.
func (k *Custodian) start(h *held) {
	ctx, stop := context.WithCancel(k.runCtx)
	h.stop = stop
	k.probers.Go(func() error {
		k.probe(ctx, h)
		return nil
	})
}

// KeyID implements plugin.Backend.
func (k *Custodian) KeyID() (string, error) {
	a := k.view.Load().active
	if a == nil {
		return "", k.notReady()
	}
	if v := a.held.health.Seal(); v.SealShut {
		return "", &keys.ShutError{Key: a.entry.Name, Class: v.Class, Err: v.Err}
	}
	return a.keyID, nil
}

// Ready says whether this instance could seal now, and if not why.
func (k *Custodian) Ready() error {
	if _, err := k.KeyID(); err != nil {
		return err
	}
	a := k.view.Load().active
	if a.wrappedOnly() {
		return k.notReady()
	}
	return nil
}

func (h *held) poke() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// headerOf builds the header of an entry's new seeds; what is wrapped is still missing.
func headerOf(r *keys.Ring, e *keys.Entry, material string) *envelope.Header {
	h := &envelope.Header{
		Suite: envelope.SuiteXAES, Type: keys.BlobLocalKEK, Identity: e.KEK.Identity(), Material: material,
		Generation: e.Generation, Cluster: envelope.ClusterDigest(r.ClusterID()), Context: e.ContextDigest(),
	}
	if r.Wrapping() == keys.WrapDirect {
		h.Suite, h.Type = envelope.SuiteNone, keys.BlobSeed
		return h
	}
	for _, o := range e.Recipients() {
		h.Recipients = append(h.Recipients, envelope.Recipient{Identity: o.KEK.Identity(), Context: o.ContextDigest()})
	}
	return h
}
