package custody

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"log/slog"
	mrand "math/rand/v2"
	"slices"
	"time"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/health"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
)

const (
	// ProbeTimeout bounds one remote call of a probe.
	ProbeTimeout = 2500 * time.Millisecond
	// retryOutage is the pause after an outage: short enough that service is
	// back within 2 s of the KMS, long enough to be no load on it.
	retryOutage = 700 * time.Millisecond
	// RetryDenied is the pause after a denial: with MinObservations it is well
	// inside the shortest denial timer.
	RetryDenied = 10 * time.Second
	minPause    = 100 * time.Millisecond
)

// probe is the life of one key: until ctx ends it asks the KMS again and again
// whether the key may still be used, and makes it the write key when its time
// has come.
func (k *Custodian) probe(ctx context.Context, h *held) {
	for {
		err := k.cycle(ctx, h)
		if ctx.Err() != nil {
			return
		}
		k.settle(h)
		timer := time.NewTimer(k.pause(h, err))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-h.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// cycle asks the KMS once, in the way that tells most.
func (k *Custodian) cycle(ctx context.Context, h *held) error {
	if several, ok := h.entry.Load().KEK.(keys.Regional); ok {
		var failed error
		if k.due(h) {
			failed = k.adopt(ctx, h)
		}
		if err := k.probeRegions(ctx, h, several); failed == nil {
			failed = err
		}
		return failed
	}
	var waits error // for a co-recipient: the key itself wrapped, and is probed as ever
	if k.due(h) {
		if waits = k.adopt(ctx, h); !errors.Is(waits, errPartly) {
			return waits
		}
	}
	if k.writes(h) {
		return cmp.Or(k.probeWrap(ctx, h), waits)
	}
	return cmp.Or(k.probeKept(ctx, h), waits)
}

// writes tells whether a key is probed by wrapping: the write key, and one that
// will be, with their co-recipients. Keys that only read never wrap.
func (k *Custodian) writes(h *held) bool {
	e, now, r := h.entry.Load(), k.now(), k.view.Load().ring
	writer := func(o *keys.Entry) bool {
		return o.Role == keys.RoleWrite && (o.ActivateAt.After(now) || r.WriteKey(now) == o)
	}
	return writer(e) || slices.ContainsFunc(r.Entries(), func(o *keys.Entry) bool { return writer(o) && slices.Contains(o.Recipients(), e) })
}

// probeWrap wraps and unwraps a canary, which also shows the material in use.
func (k *Custodian) probeWrap(ctx context.Context, h *held) error {
	canary := make(keys.Secret, 32)
	if _, err := rand.Read(canary); err != nil {
		return err
	}
	anchor := k.anchor()
	v, err := k.wrapVerified(ctx, h, keys.BlobProbe, anchor, canary)
	if err != nil {
		return err
	}
	h.keep(v.Blob, anchor)
	k.noteMaterial(h, v.Material)
	k.touch()
	return nil
}

// keep remembers a canary, for probes that do not wrap. One without an anchor is read by
// every release, so none with an anchor takes its place.
func (h *held) keep(blob []byte, anchor string) {
	if anchor == "" || h.kept.Load() == nil {
		h.kept.Store(&state.Kept{Type: keys.BlobProbe, Blob: blob, Anchor: anchor})
	}
}

// observe tells the health of an operation what a canary was answered. Where there
// are several regions only the word of each counts: see probeRegions.
func (h *held) observe(ctx context.Context, m *health.Machine, err error) {
	if _, several := h.entry.Load().KEK.(keys.Regional); !several {
		m.Observe(canceled(ctx, err))
	}
}

// wrapVerified is keys.WrapVerified with each half told to the health of its
// operation. When the wrap fails, a kept blob shows whether the unwrap does too.
func (k *Custodian) wrapVerified(ctx context.Context, h *held, t keys.BlobType, anchor string, payload keys.Secret) (keys.Verified, error) {
	e := h.entry.Load()
	v, werr, uerr := k.askBoth(ctx, e.KEK, e, t, anchor, payload)
	h.observe(ctx, h.health.Wrap, werr)
	if werr != nil {
		if _, several := e.KEK.(keys.Regional); !several {
			_ = k.probeKept(ctx, h) // its own verdict goes to the health of unwrap
		}
		return keys.Verified{}, werr
	}
	h.observe(ctx, h.health.Unwrap, uerr)
	return v, uerr
}

// askBoth wraps a payload and unwraps it again; without the wrap there is nothing
// to unwrap, and no error of it.
func (k *Custodian) askBoth(ctx context.Context, kek keys.KEK, e *keys.Entry, t keys.BlobType, anchor string, payload keys.Secret) (v keys.Verified, werr, uerr error) {
	bound := keys.NewContext(k.view.Load().ring.ClusterID(), t, e.Context).WithAudit(anchor)
	plain := envelope.MarshalPlain(t, payload)
	defer plain.Destroy()
	wctx, cancel := context.WithTimeout(ctx, ProbeTimeout)
	w, werr := kek.Wrap(wctx, plain, bound)
	cancel()
	if werr != nil {
		return v, werr, nil
	}
	uctx, cancel := context.WithTimeout(ctx, ProbeTimeout)
	defer cancel()
	u, uerr := kek.Unwrap(uctx, w.Blob, bound)
	if uerr == nil && subtle.ConstantTimeCompare(u.Plaintext, plain) != 1 {
		uerr = &keys.Error{Class: keys.ClassData, Op: keys.OpUnwrap, Key: kek.Identity(), Err: errors.New("a wrap just made opens to other bytes")}
	}
	u.Plaintext.Destroy()
	if uerr != nil {
		return v, nil, uerr
	}
	return keys.Verified{Blob: w.Blob, Material: u.Material, RequestID: u.RequestID}, nil, nil
}

// canceled keeps our own shutdown from being taken for an outage.
func canceled(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Canceled
	}
	return err
}

// probeKept unwraps a blob kept from earlier. A key for which none is known yet
// is not probed: its state stays unknown until it has opened something.
func (k *Custodian) probeKept(ctx context.Context, h *held) error {
	kept := h.kept.Load()
	if kept == nil {
		return nil
	}
	e := h.entry.Load()
	err := k.askKept(ctx, e.KEK, e, kept)
	if keys.ClassOf(err) == keys.ClassData || errors.Is(err, keys.ErrMalformed) {
		// The blob is at fault, not the key: forget it and wait for a better one.
		h.kept.CompareAndSwap(kept, nil)
		k.event(slog.LevelWarn, "probe", "a kept blob does not open any more; it is forgotten", h, "", err)
		return nil
	}
	h.health.Unwrap.Observe(canceled(ctx, err))
	if err == nil {
		k.touch()
	}
	return err
}

// askKept unwraps a kept blob and looks at what came.
func (k *Custodian) askKept(ctx context.Context, kek keys.KEK, e *keys.Entry, kept *state.Kept) error {
	ctx, cancel := context.WithTimeout(ctx, ProbeTimeout)
	defer cancel()
	u, err := kek.Unwrap(ctx, kept.Blob, keys.NewContext(k.view.Load().ring.ClusterID(), kept.Type, e.Context).WithAudit(kept.Anchor))
	if err != nil {
		return err
	}
	defer u.Plaintext.Destroy()
	_, err = envelope.ParsePlain(kept.Type, u.Plaintext)
	return err
}

// keep remembers a blob for probeKept if there is none yet.
func (k *Custodian) keep(h *held, t keys.BlobType, blob []byte) {
	if h.kept.Load() == nil {
		h.kept.CompareAndSwap(nil, &state.Kept{Type: t, Blob: append([]byte(nil), blob...)})
	}
}

// pause is how long to wait before the next cycle.
func (k *Custodian) pause(h *held, err error) time.Duration {
	t := k.settings()
	wait := t.ProbeInterval
	switch c := keys.ClassOf(err); {
	case errors.Is(err, errPartly):
		wait = min(wait, RetryDenied)
	case c == keys.ClassNone:
		if h.candidate.seen > 0 {
			wait = min(wait, t.SettleTime/time.Duration(t.Observations))
		}
	case c == keys.ClassOutage, c == keys.ClassCanceled:
		wait = min(wait, retryOutage)
	default:
		wait = min(wait, RetryDenied)
	}
	if until := time.Until(h.entry.Load().ActivateAt); until > 0 {
		wait = min(wait, until)
	}
	wait = max(wait, minPause)
	return wait - wait/10 + mrand.N(wait/5+1) // instances must not probe in step
}

// settle reports what changed and wipes what must not stay in memory.
func (k *Custodian) settle(h *held) {
	e := h.entry.Load()
	open := h.health.Open()
	for op, v := range map[keys.Op]health.Verdict{keys.OpWrap: h.health.Wrap.Verdict(), keys.OpUnwrap: h.health.Unwrap.Verdict()} {
		if before := h.lastState[op]; before != v.State {
			h.lastState[op] = v.State
			k.stateChanged(h, op, before, v)
		}
	}
	if open.Wipe && k.wipe(e) > 0 {
		k.event(slog.LevelError, "wipe", "local KEKs of a closed key were wiped from memory", h, "", open.Err)
	}
	k.observer.Changed()
}

func (k *Custodian) stateChanged(h *held, op keys.Op, before health.State, v health.Verdict) {
	level, text := slog.LevelInfo, "key answers again: "+string(op)
	switch {
	case v.State == health.Closed:
		level, text = slog.LevelError, "key is closed: "+string(op)+" is not served"
	case v.State == health.Degraded && v.Class == keys.ClassOutage:
		level, text = slog.LevelWarn, "key is degraded, still served: "+string(op)
	case v.State == health.Degraded:
		level, text = slog.LevelError, "key is denied by its KMS, still served until its limit: "+string(op)
	case before == "" || before == health.Unknown:
		if v.State == health.Unknown {
			return
		}
		text = "key answers: " + string(op)
	}
	k.event(level, string(v.State), text, h, "", v.Err)
}

// wipe drops the local KEKs of a key from memory, but for those that a co-recipient
// may still open; the wrapped copy of the write key's own stays, so that service
// resumes when the KMS allows it again.
func (k *Custodian) wipe(e *keys.Entry) int {
	ref, now := refOf(e), k.view.Load()
	n := k.cache.dropWhere(func(o *opened) bool { return slices.Contains(o.refs, ref) && now.wiped(o.refs) })
	k.mu.Lock()
	defer k.mu.Unlock()
	v := k.view.Load()
	if v.active != nil && v.active.local != nil && slices.Contains(v.active.refs, ref) && v.wiped(v.active.refs) {
		a := *v.active
		a.local = nil
		k.swap(v, &a)
		n++
	}
	return n
}

func (k *Custodian) event(level slog.Level, kind, text string, h *held, keyID string, err error) {
	k.observer.Event(Event{Kind: kind, Level: level, Text: text, Key: h.entry.Load().Name, KeyID: keyID, Err: err})
}
