package custody

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"kms-plugin.io/internal/health"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
)

// openedRecently is how long a retired key must have opened nothing before it
// may leave the ring: the time kube-apiserver keeps a DEK seed in memory
// (k8s.io/apiserver envelope/kmsv2: cacheTTL).
const openedRecently = 24 * time.Hour

// GuardError is a ring that is valid by itself but must not follow the one this
// instance has.
type GuardError struct{ Reason, Hint string }

func (e *GuardError) Error() string { return e.Reason }

// Replace swaps the ring and the tuning. RPCs in flight finish on the old ones.
// A *GuardError changes nothing.
func (k *Custodian) Replace(r *keys.Ring, t Tuning) error {
	v, err := k.plan(r, false)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.view.Load()
	k.tuning = t
	v.active = carry(old.active, v)
	k.view.Store(v)
	running := map[*held]bool{}
	for _, h := range old.held {
		running[h] = true
	}
	for _, h := range v.held {
		h.health.SetLimits(t.Limits)
		if running[h] {
			h.poke()
		} else if k.probers != nil {
			k.start(h)
		}
		delete(running, h)
	}
	for h := range running {
		h.stop()
	}
	k.cache.dropWhere(func(o *opened) bool { return len(v.known(o.refs)) == 0 })
	k.save()
	return nil
}

// carry keeps what is reported while the new ring has the same KEK, so that
// nothing changes for the API server until the next key_id is ready.
func carry(a *active, v *view) *active {
	if a == nil {
		return nil
	}
	e, err := v.ring.Lookup(a.entry.KEK.Identity(), a.entry.ContextDigest())
	if err != nil {
		return nil
	}
	next := *a
	next.held = v.held[e]
	if e.Name == a.entry.Name && e.Generation == a.entry.Generation {
		next.entry = e
	}
	return &next
}

// plan checks a ring against what this instance remembers and builds its view.
func (k *Custodian) plan(r *keys.Ring, force bool) (*view, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.view.Load()
	if !force {
		if err := k.guard(r, old); err != nil {
			return nil, err
		}
	}
	v := &view{ring: r, held: map[*keys.Entry]*held{}}
	for _, e := range r.Entries() {
		h := find(old, e)
		if h == nil {
			h = k.newHeld(e)
		}
		h.entry.Store(e)
		v.held[e] = h
	}
	return v, nil
}

func find(v *view, e *keys.Entry) *held {
	if v == nil {
		return nil
	}
	for o, h := range v.held {
		if sameKey(o, e) {
			return h
		}
	}
	return nil
}

func sameKey(a, b *keys.Entry) bool {
	return a.KEK.Identity() == b.KEK.Identity() && a.ContextDigest() == b.ContextDigest()
}

// newHeld starts the life of an entry with what the state file knows of it.
func (k *Custodian) newHeld(e *keys.Entry) *held {
	h := &held{health: health.NewKey(k.clock, k.tuning.Limits), wake: make(chan struct{}, 1),
		lastState: map[keys.Op]health.State{}, readableSince: time.Now(), stop: func() {}}
	if m := k.remember(e); m != nil {
		h.readableSince = m.ReadableSince
		h.kept.Store(m.Kept)
		if !m.LastOpened.IsZero() {
			h.lastOpened.Store(m.LastOpened.Unix())
		}
		if !m.LastGood.Wall.IsZero() {
			h.health.Wrap.Remember(m.LastGood.Elapsed())
			h.health.Unwrap.Remember(m.LastGood.Elapsed())
		}
	}
	return h
}

func (k *Custodian) remember(e *keys.Entry) *state.Key {
	d := e.ContextDigest()
	i := slices.IndexFunc(k.memory.Keys, func(m state.Key) bool {
		return m.Identity == e.KEK.Identity() && m.Context == hex.EncodeToString(d[:])
	})
	if i < 0 {
		return nil
	}
	return &k.memory.Keys[i]
}

// guard holds a ring against the one before, also that of an earlier process.
func (k *Custodian) guard(r *keys.Ring, old *view) error {
	known := k.memory.Keys
	if old != nil {
		known = k.remembering(old)
	}
	for _, m := range known {
		if err := guardLeaving(r, m); err != nil {
			return err
		}
	}
	if k.memory.Active == nil {
		return nil // nothing was ever written here
	}
	for _, e := range r.Entries() {
		if err := k.guardWriting(r, e, known); err != nil {
			return err
		}
	}
	return nil
}

// guardLeaving: a key leaves the ring only retired and unused.
func guardLeaving(r *keys.Ring, m state.Key) error {
	for _, e := range r.Entries() {
		if d := e.ContextDigest(); e.KEK.Identity() == m.Identity && hex.EncodeToString(d[:]) == m.Context {
			return nil
		}
	}
	if m.Role != keys.RoleRetired {
		return &GuardError{
			Reason: fmt.Sprintf("key %q (role %s) is missing from the new configuration", m.Name, m.Role),
			Hint:   fmt.Sprintf("put key %q back with role: retired, and drop it when it has opened nothing for 24 h", m.Name)}
	}
	if since := time.Since(m.LastOpened); !m.LastOpened.IsZero() && since < openedRecently {
		return &GuardError{
			Reason: fmt.Sprintf("key %q is missing from the new configuration but opened a seed %s ago", m.Name, since.Round(time.Minute)),
			Hint:   fmt.Sprintf("put key %q back with role: retired; something in the cluster still depends on it", m.Name)}
	}
	return nil
}

// guardWriting: a key that will write must have been readable here long enough,
// and must not report a key_id that was left behind.
func (k *Custodian) guardWriting(r *keys.Ring, e *keys.Entry, known []state.Key) error {
	now := time.Now()
	if e.Role != keys.RoleWrite || r.WriteKey(now) != e && !e.ActivateAt.After(now) {
		return nil
	}
	d := e.ContextDigest()
	last := k.memory.Journal[len(k.memory.Journal)-1]
	if last.IsOf(e, r.Wrapping()) {
		return nil // it writes already
	}
	for _, j := range k.memory.Journal {
		if j.IsOf(e, r.Wrapping()) {
			return &GuardError{
				Reason: fmt.Sprintf("key %q wrote before and another key has written since: its key_id would be used again", e.Name),
				Hint:   fmt.Sprintf("set generation: %d or higher for key %q", e.Generation+1, e.Name)}
		}
	}
	readable, at := now, now
	for _, m := range known {
		if m.Identity == e.KEK.Identity() && m.Context == hex.EncodeToString(d[:]) {
			readable = m.ReadableSince
		}
	}
	if e.ActivateAt.After(at) {
		at = e.ActivateAt
	}
	if wait := k.tuning.ReadableFor; at.Sub(readable) < wait {
		return &GuardError{
			Reason: fmt.Sprintf("key %q would write after having been readable here for only %s", e.Name, max(0, at.Sub(readable)).Round(time.Second)),
			Hint:   fmt.Sprintf("give it role: read on every control-plane node first, or activateAt: %s or later", readable.Add(wait).UTC().Format(time.RFC3339))}
	}
	return nil
}
