package custody

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/localkek"
	"kms-plugin.io/pkg/plugin"
)

// candidate is new material of the write key on its way to become the write
// material. It belongs to the key's prober alone.
type candidate struct {
	material string
	seen     int
	since    time.Time
}

// errOtherMaterial: the KMS wrapped with another material than the one about to
// be adopted, as an eventually consistent one may for some minutes.
var errOtherMaterial = errors.New("the KMS still wraps with another material than the one about to be adopted")

// noteMaterial counts sights of new material. One sight of the old one in
// between starts the count again: cloud answers may differ per caller and step
// back, key_id must not.
func (k *Custodian) noteMaterial(h *held, material string) {
	a := k.view.Load().active
	if a == nil || a.held != h {
		return
	}
	switch {
	case material == a.material:
		h.candidate = candidate{}
	case k.reported(h.entry.Load(), material):
		h.candidate = candidate{}
		k.event(slog.LevelWarn, "rotation", "the KMS wrapped with material that was already replaced; key_id stays", h, a.keyID, nil)
	case material != h.candidate.material:
		h.candidate = candidate{material: material, seen: 1, since: time.Now()}
		k.event(slog.LevelInfo, "rotation", "new key material seen; it writes after some more equal sights", h, a.keyID, nil)
	default:
		h.candidate.seen++
	}
}

// ripe says whether the candidate was seen often and long enough. A direct
// Encrypt cannot choose its material, so there the time does not count.
func (k *Custodian) ripe(c candidate, w keys.Wrapping) bool {
	t := k.settings()
	return c.seen >= t.Observations && (w == keys.WrapDirect || time.Since(c.since) >= t.SettleTime)
}

// due says whether a key must be adopted: it is the write key, and not (or not
// wholly) what Status reports.
func (k *Custodian) due(h *held) bool {
	v := k.view.Load()
	e := h.entry.Load()
	if v.ring.WriteKey(k.now()) != e {
		return false
	}
	a := v.active
	return a == nil || !a.stands(e, v.ring) || a.wrappedOnly() || h.candidate.seen == 0 && k.otherSuite(a) || k.ripe(h.candidate, v.ring.Wrapping())
}

// suite is what new local KEKs seal with.
func (k *Custodian) suite() localkek.Suite {
	if s := k.settings().Suite; s != 0 {
		return s
	}
	return localkek.XAES
}

// otherSuite says whether the local KEK in use seals by another suite than the
// configured one. key_id stays: all of both suites opens everywhere. While new
// material is on its way nothing is done about it: the adoption of that does it too.
func (k *Custodian) otherSuite(a *active) bool {
	return a.kind == keys.BlobLocalKEK && a.suite != envelope.Suite(k.suite())
}

// adopt makes a key the write key, or takes up its local KEK again.
func (k *Custodian) adopt(ctx context.Context, h *held) error {
	v := k.view.Load()
	e, a := h.entry.Load(), v.active
	same := a != nil && a.stands(e, v.ring)
	if same && a.wrappedOnly() {
		err := k.restore(ctx, h, a)
		if !errors.Is(err, keys.ErrContradiction) && !errors.Is(err, keys.ErrMalformed) && keys.ClassOf(err) != keys.ClassData {
			return err
		}
		k.event(slog.LevelWarn, "restore", "the remembered local KEK does not open; a new one is made", h, a.keyID, err)
		same = false
	}
	want := ""
	if same {
		want = h.candidate.material
	}
	suiteAlone := same && !k.ripe(h.candidate, v.ring.Wrapping())
	if suiteAlone {
		want = a.material
	}
	next, o, err := k.create(ctx, h, e, v.ring, want)
	if errors.Is(err, errOtherMaterial) && suiteAlone {
		return k.probeWrap(ctx, h) // it is seen, and counted from here
	}
	if errors.Is(err, errOtherMaterial) {
		h.candidate = candidate{}
		k.event(slog.LevelInfo, "rotation", err.Error(), h, a.keyID, nil)
		return nil
	}
	if err != nil {
		k.stays(h, a, same, err)
		return err
	}
	h.blocked.Store(nil)
	return k.activate(h, next, o)
}

// restore unwraps the local KEK that the active header holds.
func (k *Custodian) restore(ctx context.Context, h *held, a *active) error {
	hd, err := envelope.Parse(a.header)
	if err != nil {
		return err
	}
	v := k.view.Load()
	by := v.ordered(refsOf(hd)) // closed ones too: this is how they open again
	bounded, cancel := context.WithTimeout(ctx, ProbeTimeout)
	defer cancel()
	o, err := unwrapAny(bounded, v.ring.ClusterID(), by, hd, func(e *keys.Entry, err error) {
		if o := v.held[e]; err == nil || o == h && !errors.Is(err, keys.ErrContradiction) && !errors.Is(err, keys.ErrMalformed) && keys.ClassOf(err) != keys.ClassData {
			// By the prober's ctx: that the time of the call is up is an outage, not our shutdown.
			o.observe(ctx, o.health.Unwrap, err) // one that opened is open again, or settle would wipe it at once
		}
	})
	if err != nil {
		return err
	}
	k.keepAll(v, hd)
	if !v.wiped(a.refs) { // else it is wiped again, and would be taken up again without a pause
		h.poke() // whether it still wraps is not known yet
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cache.put(a.digest, o)
	next := *a
	next.local = o.key
	k.swap(k.view.Load(), &next)
	k.event(slog.LevelInfo, "restore", "local KEK taken up again", h, a.keyID, nil)
	return nil
}

// create makes what a new key_id needs, by a wrap that was verified. With want
// set, another material than that one is errOtherMaterial.
func (k *Custodian) create(ctx context.Context, h *held, e *keys.Entry, r *keys.Ring, want string) (*active, *opened, error) {
	suite := k.suite()
	local, secret, err := localkek.Generate(suite)
	if err != nil {
		return nil, nil, err
	}
	defer secret.Destroy()
	t := keys.BlobLocalKEK
	if r.Wrapping() == keys.WrapDirect {
		t = keys.BlobProbe // nothing but the material is wanted
	}
	ver, err := k.wrapVerified(ctx, h, t, "", secret)
	if err != nil {
		return nil, nil, err
	}
	if want != "" && ver.Material != want {
		return nil, nil, errOtherMaterial
	}
	h.kept.Store(&state.Kept{Type: t, Blob: ver.Blob})
	hd := headerOf(r, e, ver.Material)
	if r.Wrapping() == keys.WrapLocalKEK {
		hd.Suite, hd.LocalKEK, hd.Wrapped = envelope.Suite(suite), local.ID(), ver.Blob
		if err := k.wrapAlso(ctx, e, secret, hd); err != nil {
			return nil, nil, err
		}
	}
	a, err := newActive(h, e, r.ClusterID(), hd)
	if err != nil || r.Wrapping() == keys.WrapDirect {
		return a, nil, err
	}
	a.local = local
	return a, newOpened(local, hd, e, r.ClusterID(), ver.RequestID), nil
}

func newActive(h *held, e *keys.Entry, clusterID string, hd *envelope.Header) (*active, error) {
	raw, err := hd.Marshal()
	if err != nil {
		return nil, fmt.Errorf("build the header of key %q: %w", e.Name, err)
	}
	a := &active{held: h, entry: e, material: hd.Material, refs: refsOf(hd), header: raw, digest: envelope.Digest(raw), kind: hd.Type, suite: hd.Suite,
		keyID:       keys.KeyID(e.Name, hd.Facts(clusterID)),
		annotations: map[string][]byte{envelope.AnnotationKey: raw},
		detail:      plugin.Detail{KEK: hd.Identity}}
	if hd.Type == keys.BlobLocalKEK {
		a.detail.LocalKEK = shortID(hd.LocalKEK)
	}
	return a, nil
}

// activate reports a new key_id, after it was written down: a crash in between
// makes the next start report it, never one that was left.
func (k *Custodian) activate(h *held, a *active, o *opened) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.usedBefore(a.keyID) {
		err := fmt.Errorf("key_id %q was reported before and another one since; raise the generation of key %q", a.keyID, a.entry.Name)
		k.event(slog.LevelError, "activate", "a key_id must not be used again; this instance stays on the old one", h, a.keyID, err)
		return err
	}
	v := k.view.Load()
	old := ""
	if v.active != nil {
		old = v.active.keyID
	}
	k.memory.Active = &state.Active{KeyID: a.keyID, Header: a.header}
	if a.entry.ActivateAt.After(k.memory.Turned) {
		k.memory.Turned = a.entry.ActivateAt
	}
	if old != a.keyID {
		k.memory.Journal = append(k.memory.Journal, journalEntry(a))
	}
	k.save()
	if o != nil {
		k.cache.put(a.digest, o)
	}
	k.swap(v, a)
	h.candidate = candidate{}
	k.event(slog.LevelInfo, "activate", "key_id activated", h, a.keyID, nil)
	for _, other := range v.held {
		if other != h {
			other.poke() // its way of being probed may have changed
		}
	}
	return nil
}

// usedBefore says whether a key_id was reported and then replaced; the caller
// holds mu.
func (k *Custodian) usedBefore(keyID string) bool {
	j := k.memory.Journal
	i := slices.IndexFunc(j, func(r state.Reported) bool { return r.KeyID == keyID })
	return i >= 0 && j[len(j)-1].KeyID != keyID
}

// reported says whether this material of an entry was reported before.
func (k *Custodian) reported(e *keys.Entry, material string) bool {
	r := k.view.Load().ring
	id := keys.KeyID(e.Name, headerOf(r, e, material).Facts(r.ClusterID()))
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.memory.Journal, func(x state.Reported) bool { return x.KeyID == id })
}

// swap publishes a new active; the caller holds mu.
func (k *Custodian) swap(v *view, a *active) {
	next := *v
	next.active = a
	k.view.Store(&next)
}

// now is the time for activateAt. It never goes back behind a turn that was
// taken, whatever the clock does.
func (k *Custodian) now() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); now.After(k.memory.Turned) {
		return now
	}
	return k.memory.Turned
}

func (k *Custodian) settings() Tuning {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tuning
}

// stands says whether what Status reports is this entry as configured.
func (a *active) stands(e *keys.Entry, r *keys.Ring) bool {
	return a.entry == e && a.wrapping() == r.Wrapping() && slices.Equal(a.refs, refsOf(headerOf(r, e, a.material)))
}

func (a *active) wrapping() keys.Wrapping {
	if a.kind == keys.BlobSeed {
		return keys.WrapDirect
	}
	return keys.WrapLocalKEK
}

// wrappedOnly: there is a local KEK, but it is not in memory.
func (a *active) wrappedOnly() bool { return a.kind == keys.BlobLocalKEK && a.local == nil }
