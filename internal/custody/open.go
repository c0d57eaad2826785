package custody

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

// Open implements plugin.Backend. It routes by what the header says and
// believes only what the cloud confirms: any material and any generation of any
// KEK of the ring opens, also with no state, and also before this instance has
// noticed the rotation that made it.
func (k *Custodian) Open(ctx context.Context, r plugin.OpenRequest) (keys.Secret, plugin.Detail, error) {
	v := k.view.Load()
	raw, err := annotation(r.Annotations)
	if err != nil {
		return nil, plugin.Detail{}, err
	}
	d := envelope.Digest(raw)
	if o := k.cache.get(d); o != nil {
		if seed, detail, err, done := k.openKnown(v, o, r, d); done {
			return seed, detail, err
		}
	}
	h, err := envelope.Parse(raw)
	if err != nil {
		return nil, plugin.Detail{}, err
	}
	detail := plugin.Detail{KEK: h.Identity}
	by, err := k.route(v, h, r.KeyID)
	if err != nil {
		return nil, detail, err
	}
	body, err := envelope.Unframe(h.Type, r.Ciphertext)
	if err != nil {
		return nil, detail, err
	}
	var seed keys.Secret
	if h.Type == keys.BlobSeed {
		seed, err = k.openDirect(ctx, v, by[0], h, d, body, &detail)
	} else {
		seed, err = k.openLocal(ctx, v, by, h, d, body, &detail)
	}
	return seed, detail, err
}

// annotation finds our header among hostile annotations.
func annotation(all map[string][]byte) ([]byte, error) {
	raw, ok := all[envelope.AnnotationKey]
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: annotation %q is missing", keys.ErrMalformed, envelope.AnnotationKey)
	case len(all) > 1:
		return nil, fmt.Errorf("%w: there are %d annotations, this plugin writes only %q", keys.ErrMalformed, len(all), envelope.AnnotationKey)
	case len(raw) > envelope.MaxHeader:
		return nil, fmt.Errorf("%w: header has %d bytes, at most %d are allowed", keys.ErrMalformed, len(raw), envelope.MaxHeader)
	}
	return raw, nil
}

// openKnown serves from memory. The very same header was parsed and confirmed
// when its local KEK came to memory. Not done: the KEK left the ring since.
func (k *Custodian) openKnown(v *view, o *opened, r plugin.OpenRequest, d digest) (keys.Secret, plugin.Detail, error, bool) {
	all := v.known(o.refs)
	if len(all) == 0 {
		return nil, plugin.Detail{}, nil, false
	}
	k.observer.CacheResult("hit")
	detail := plugin.Detail{KEK: o.by.KEK.Identity(), LocalKEK: o.detail}
	seed, err := k.unseal(v, all, o, r, d)
	if err != nil {
		return nil, detail, err, true
	}
	k.opened(v, all, nil)
	return seed, detail, nil, true
}

func (k *Custodian) unseal(v *view, all []*keys.Entry, o *opened, r plugin.OpenRequest, d digest) (keys.Secret, error) {
	if err := v.shut(all); err != nil {
		return nil, err
	}
	if err := compareKeyID(r.KeyID, o.keyID); err != nil {
		return nil, err
	}
	body, err := envelope.Unframe(keys.BlobLocalKEK, r.Ciphertext)
	if err != nil {
		return nil, err
	}
	seed, err := o.key.Open(body, d[:])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", keys.ErrContradiction, err)
	}
	return seed, nil
}

// route finds the entries that can open a header and refuses what cannot be ours
// before any remote call.
func (k *Custodian) route(v *view, h *envelope.Header, keyID string) ([]*keys.Entry, error) {
	if h.Cluster != envelope.ClusterDigest(v.ring.ClusterID()) {
		return nil, fmt.Errorf("%w: it was sealed for another cluster id than %q", keys.ErrContradiction, v.ring.ClusterID())
	}
	by, err := v.openers(refsOf(h))
	if errors.Is(err, keys.ErrUnknownKey) {
		return nil, err
	}
	if err := compareKeyID(keyID, h.Facts(v.ring.ClusterID()).Digest()); err != nil {
		return nil, err
	}
	return by, err
}

// compareKeyID holds the request's key_id against the facts. The name before
// the colon is a label and not compared: an entry that was renamed still opens
// what it sealed under its old name.
func compareKeyID(keyID, facts string) error {
	_, got, err := keys.SplitKeyID(keyID)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(got), []byte(facts)) != 1 {
		return fmt.Errorf("%w: key_id does not belong to its header", keys.ErrContradiction)
	}
	return nil
}

// shut refuses a key that its KMS denied for too long.
func shut(h *held, e *keys.Entry) error {
	if v := h.health.Open(); v.OpenShut {
		return &keys.ShutError{Key: e.Name, Class: v.Class, Err: v.Err}
	}
	return nil
}

func (k *Custodian) openLocal(ctx context.Context, v *view, by []*keys.Entry, h *envelope.Header, d digest, body []byte, detail *plugin.Detail) (keys.Secret, error) {
	o, result, err := k.cache.local(ctx, v.ring.ClusterID(), by, h, d)
	k.observer.CacheResult(result)
	detail.LocalKEK = shortID(h.LocalKEK)
	if err != nil {
		return nil, err
	}
	detail.RequestID, detail.KEK = o.request, o.by.KEK.Identity()
	seed, err := o.key.Open(body, d[:])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", keys.ErrContradiction, err)
	}
	k.keepAll(v, h)
	k.opened(v, v.known(o.refs), v.ring.Find(o.by.KEK.Identity(), o.by.ContextDigest()))
	return seed, nil
}

// openDirect has the KEK itself open the seed; nothing of it is kept.
func (k *Custodian) openDirect(ctx context.Context, v *view, e *keys.Entry, h *envelope.Header, d digest, body []byte, detail *plugin.Detail) (keys.Secret, error) {
	call := sha256.Sum256(append(d[:], body...))
	request := ""
	seed, result, err := k.cache.seeds.do(ctx, call, func(ctx context.Context) (keys.Secret, error) {
		u, err := e.KEK.Unwrap(ctx, body, keys.NewContext(v.ring.ClusterID(), keys.BlobSeed, e.Context))
		if err != nil {
			return nil, fmt.Errorf("unwrap seed with key %q: %w", e.Name, err)
		}
		request = u.RequestID
		return seedOf(u, h, d, e.Name)
	})
	k.observer.CacheResult(result)
	if err != nil {
		return nil, err
	}
	if result == "miss" {
		detail.RequestID = request
	}
	k.opened(v, []*keys.Entry{e}, e)
	return append(keys.Secret(nil), seed...), nil // others may share the flight
}

// seedOf checks what a KEK unwrapped against the header it came with.
func seedOf(u keys.Unwrapped, h *envelope.Header, d digest, name string) (keys.Secret, error) {
	defer u.Plaintext.Destroy()
	plain, err := envelope.ParsePlain(keys.BlobSeed, u.Plaintext)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(plain[:32], d[:]) != 1 {
		return nil, fmt.Errorf("%w: key %q: the header is not the one this seed was wrapped with", keys.ErrContradiction, name)
	}
	if u.Material != h.Material {
		return nil, fmt.Errorf("%w: key %q: the header names another material than the one that unwrapped it", keys.ErrContradiction, name)
	}
	return append(keys.Secret(nil), plain[32:]...), nil
}
