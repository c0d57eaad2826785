package keys

import (
	"context"
	"crypto/subtle"
	"fmt"
)

// KEK wraps small secrets (at most 128 bytes) under one key that never leaves
// its provider.
//
// Implementations are safe for concurrent use, honour ctx, start no goroutine
// that outlives a call, and never retry beyond ctx. Every error they return is
// an *Error (or wraps one), so that ClassOf tells what it means.
type KEK interface {
	// Identity is the canonical name of the key: equal on every instance and,
	// for a multi-Region key, in every region; never re-used for another key.
	// It is stored with every object: printable ASCII, 1 to MaxIdentity bytes,
	// not secret.
	Identity() string

	// Wrap encrypts plaintext bound to the context. The answer is opaque and at
	// most MaxBlob bytes. It does not say which material was used (AWS Encrypt
	// does not report it): use WrapVerified where that matters.
	Wrap(ctx context.Context, plaintext Secret, bound Context) (Wrapped, error)

	// Unwrap decrypts a blob made by Wrap of this very key and context, and
	// reports the material that did it. A blob of another key, of another
	// context or a damaged one is ClassData.
	Unwrap(ctx context.Context, blob []byte, bound Context) (Unwrapped, error)
}

// Limits of what a KEK may answer with, in bytes. They keep the header of a
// stored object below the limits of the KMS v2 API (1 kB of ciphertext, 32 kB
// of annotations: k8s.io/apiserver envelope/kmsv2.validateAnnotations).
const (
	MaxIdentity = 200
	MaxMaterial = 128
	MaxBlob     = 768
)

// Wrapped is the answer of KEK.Wrap.
type Wrapped struct {
	Blob      []byte // opaque, to be stored
	Region    string // which endpoint answered, "" where there is no such thing
	RequestID string // the provider's id of the call, "" if it has none
}

// Unwrapped is the answer of KEK.Unwrap.
type Unwrapped struct {
	Plaintext Secret
	Material  string // version of the key's bytes, "" if the provider has none; printable ASCII, at most MaxMaterial bytes
	Region    string
	RequestID string
}

// Verified is a blob that was unwrapped again before anyone relied on it.
type Verified struct {
	Blob      []byte
	Material  string // material that unwrapped it
	RequestID string // of the unwrap
}

// WrapVerified wraps, unwraps the result, compares, and reports the material:
// an unreadable wrap is never handed out. It costs two remote calls. A blob
// that comes back as other bytes is ClassData.
func WrapVerified(ctx context.Context, k KEK, plaintext Secret, bound Context) (Verified, error) {
	w, err := k.Wrap(ctx, plaintext, bound)
	if err != nil {
		return Verified{}, err
	}
	u, err := k.Unwrap(ctx, w.Blob, bound)
	if err != nil {
		return Verified{}, fmt.Errorf("verify the wrap just made: %w", err)
	}
	defer u.Plaintext.Destroy()
	if subtle.ConstantTimeCompare(u.Plaintext, plaintext) != 1 {
		return Verified{}, &Error{Class: ClassData, Op: OpUnwrap, Key: k.Identity(), RequestID: u.RequestID,
			Err: fmt.Errorf("the wrap just made opens to other bytes")}
	}
	return Verified{Blob: w.Blob, Material: u.Material, RequestID: u.RequestID}, nil
}
