package custody

import (
	"context"
	"fmt"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

// Seal implements plugin.Backend. With a local KEK in memory it needs no
// network; key_id and ciphertext come from the same snapshot that KeyID reads.
func (k *Custodian) Seal(ctx context.Context, seed keys.Secret) (plugin.Sealed, error) {
	v := k.view.Load()
	a := v.active
	if a == nil {
		return plugin.Sealed{}, k.notReady()
	}
	out := plugin.Sealed{KeyID: a.keyID, Annotations: a.annotations, Detail: a.detail}
	if s := a.held.health.Seal(); s.SealShut {
		return plugin.Sealed{Detail: a.detail}, &keys.ShutError{Key: a.entry.Name, Class: s.Class, Err: s.Err}
	}
	var err error
	switch {
	case a.wrapping() == keys.WrapDirect:
		err = k.sealDirect(ctx, v.ring.ClusterID(), a, seed, &out)
	case a.local == nil:
		err = k.notReady()
	default:
		var sealed []byte
		sealed, err = a.local.Seal(seed, a.digest[:])
		out.Ciphertext = envelope.Frame(keys.BlobLocalKEK, sealed)
	}
	if err != nil {
		return plugin.Sealed{Detail: a.detail}, err
	}
	return out, nil
}

// sealDirect wraps the seed by the KEK itself and unwraps it again: that alone
// tells which material did it. New material is not claimed under the old
// key_id: such an Encrypt fails, once, while the prober adopts the new one.
func (k *Custodian) sealDirect(ctx context.Context, clusterID string, a *active, seed keys.Secret, out *plugin.Sealed) error {
	ctx, cancel := context.WithTimeout(ctx, plugin.CallTimeout)
	defer cancel()
	plain := envelope.MarshalPlain(keys.BlobSeed, a.digest[:], seed)
	defer plain.Destroy()
	w, err := keys.WrapVerified(ctx, a.entry.KEK, plain, keys.NewContext(clusterID, keys.BlobSeed, a.entry.Context))
	if err != nil {
		return fmt.Errorf("wrap seed with key %q: %w", a.entry.Name, err)
	}
	if w.Material != a.material {
		a.held.poke()
		return fmt.Errorf("%w: key %q wrapped with another material than the reported key_id stands for; its rotation is being adopted", keys.ErrNotReady, a.entry.Name)
	}
	out.Ciphertext = envelope.Frame(keys.BlobSeed, w.Blob)
	out.Detail.RequestID = w.RequestID
	return nil
}

// notReady names why nothing can be sealed or reported yet.
func (k *Custodian) notReady() error {
	v := k.view.Load()
	e := v.ring.WriteKey(k.now())
	if e == nil {
		return fmt.Errorf("%w: no write key is activated yet", keys.ErrNotReady)
	}
	if b := v.held[e].blocked.Load(); b != nil {
		return fmt.Errorf("%w: %w", keys.ErrNotReady, b.err)
	}
	s := v.held[e].health.Seal()
	if a := v.active; s.Err != nil && a != nil && a.stands(e, v.ring) {
		return fmt.Errorf("%w: the local KEK is not in memory yet, and key %q does not unwrap it: %w", keys.ErrNotReady, e.Name, s.Err)
	}
	if s.Err != nil {
		return fmt.Errorf("%w: no wrap with key %q has succeeded yet: %w", keys.ErrNotReady, e.Name, s.Err)
	}
	return fmt.Errorf("%w: the first wrap with key %q is under way", keys.ErrNotReady, e.Name)
}
