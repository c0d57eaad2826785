package localfile

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/tink-crypto/tink-go/v2/tink"

	"kms-plugin.io/pkg/keys"
)

// KEK implements keys.KEK.
type KEK struct {
	identity  string
	materials map[uint32]string // by Tink key id
	aead      tink.AEAD
}

// Identity implements keys.KEK: "localfile:" and the fingerprint of the oldest key.
func (k *KEK) Identity() string { return k.identity }

// Wrap implements keys.KEK. The context is the associated data.
func (k *KEK) Wrap(ctx context.Context, plaintext keys.Secret, bound keys.Context) (keys.Wrapped, error) {
	if err := ctx.Err(); err != nil {
		return keys.Wrapped{}, k.fail(keys.OpWrap, ctxClass(err), err)
	}
	blob, err := k.aead.Encrypt(plaintext, bound.Canonical())
	if err != nil {
		return keys.Wrapped{}, k.fail(keys.OpWrap, keys.ClassOutage, errors.New("encryption by Tink failed"))
	}
	return keys.Wrapped{Blob: blob}, nil
}

// Unwrap implements keys.KEK.
func (k *KEK) Unwrap(ctx context.Context, blob []byte, bound keys.Context) (keys.Unwrapped, error) {
	if err := ctx.Err(); err != nil {
		return keys.Unwrapped{}, k.fail(keys.OpUnwrap, ctxClass(err), err)
	}
	plain, err := k.aead.Decrypt(blob, bound.Canonical())
	if err != nil {
		return keys.Unwrapped{}, k.fail(keys.OpUnwrap, keys.ClassData, errors.New("the blob is damaged, of another keyset or of another encryption context"))
	}
	// Decrypt succeeded, so the blob has a prefix and its key is in the keyset.
	return keys.Unwrapped{Plaintext: plain, Material: k.materials[binary.BigEndian.Uint32(blob[1:5])]}, nil
}

func (k *KEK) fail(op keys.Op, c keys.Class, err error) error {
	return &keys.Error{Class: c, Op: op, Key: k.identity, Err: err}
}

func ctxClass(err error) keys.Class {
	if errors.Is(err, context.Canceled) {
		return keys.ClassCanceled
	}
	return keys.ClassOutage
}
