// Package localkek is the cryptography of a local KEK: a 256-bit key made by
// one plugin instance, held in memory only, that seals DEK seeds. It must not
// know how a local KEK is wrapped, stored, cached or counted.
//
// Two independent values are derived from the 32 random bytes by HKDF-SHA256:
// the sealing key, and the id. The id is a commitment: XAES-256-GCM does not
// commit to its key, so whoever could have a KMS answer with another local KEK
// must be caught by comparing the id.
//
// Sealing is by one of two suites; a local KEK has one for its life, named in the
// header of all that it seals. XAES-256-GCM (https://c2sp.org/XAES-256-GCM) by
// Tink has 192-bit random nonces, which allow any number of seals under one key.
// AES-256-GCM under a key derived for each seal (see aes.go) is made of what
// FIPS 140-3 approves, and works where Tink does not: under GODEBUG=fips140=only.
package localkek

import (
	"crypto/fips140"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/aead/xaesgcm"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/secretdata"
	"github.com/tink-crypto/tink-go/v2/tink"

	"kms-plugin.io/pkg/keys"
)

// Size is the length of a local KEK, IDSize that of its id, in bytes.
const (
	Size   = 32
	IDSize = 32
)

// Suite is how a local KEK seals. The numbers are those of the header.
type Suite uint8

// The suites.
const (
	XAES Suite = 1
	AES  Suite = 2
)

const (
	infoID   = "kms-plugin.io/local-kek/id/v1"
	infoSeal = "kms-plugin.io/local-kek/seal/v1"
	// saltSize 12 with a 12-byte IV gives the 192-bit nonce of the specification.
	saltSize = 12
)

// ErrSeal is returned when a sealed seed does not open: it or its header was
// changed, or it was sealed under another local KEK.
var ErrSeal = errors.New("sealed seed does not open: it or its header was changed")

// ErrCommitment is returned when bytes are not the local KEK that the id names.
var ErrCommitment = errors.New("unwrapped local KEK is not the one its header commits to")

// ErrSuite is returned when a suite cannot be used in this process: it is not
// known, or the process allows FIPS 140-3 algorithms only and the suite is none.
var ErrSuite = errors.New("suite cannot be used in this process")

// Key is a local KEK ready for use. Safe for concurrent use. It prints nothing
// of itself.
type Key struct {
	id   [IDSize]byte
	aead tink.AEAD // also of our own
}

// Generate makes a new local KEK. The caller wraps the secret and destroys it.
func Generate(s Suite) (*Key, keys.Secret, error) {
	secret := make(keys.Secret, Size)
	if _, err := rand.Read(secret); err != nil {
		return nil, nil, fmt.Errorf("make a local KEK: %w", err)
	}
	k, err := build(secret, s)
	if err != nil {
		secret.Destroy()
		return nil, nil, err
	}
	return k, secret, nil
}

// Open takes up a local KEK that a KEK unwrapped and checks that it is the one
// the id names, else ErrCommitment. The caller destroys the secret.
func Open(secret keys.Secret, id [IDSize]byte, s Suite) (*Key, error) {
	if len(secret) != Size {
		return nil, ErrCommitment
	}
	k, err := build(secret, s)
	if err != nil {
		return nil, err
	}
	if subtle.ConstantTimeCompare(k.id[:], id[:]) != 1 {
		return nil, ErrCommitment
	}
	return k, nil
}

// ID is the public name of the local KEK.
func (k *Key) ID() [IDSize]byte { return k.id }

// Seal encrypts a seed bound to ad.
func (k *Key) Seal(seed keys.Secret, ad []byte) ([]byte, error) {
	var sealed []byte
	var err error
	erased(func() { sealed, err = k.aead.Encrypt(seed, ad) })
	if err != nil {
		return nil, errors.New("seal under the local KEK failed")
	}
	return sealed, nil
}

// Open decrypts what Seal made with the same ad, else ErrSeal.
func (k *Key) Open(sealed, ad []byte) (keys.Secret, error) {
	var seed []byte
	var err error
	erased(func() { seed, err = k.aead.Decrypt(sealed, ad) })
	if err != nil {
		return nil, ErrSeal
	}
	return seed, nil
}

func build(secret keys.Secret, s Suite) (k *Key, err error) {
	erased(func() { k, err = derive(secret, s) })
	return k, err
}

func derive(secret keys.Secret, s Suite) (*Key, error) {
	id, err := hkdf.Key(sha256.New, secret, nil, infoID, IDSize)
	if err != nil {
		return nil, errors.New("derive the id of a local KEK failed")
	}
	a, err := newSuite(secret, s)
	if err != nil {
		return nil, err
	}
	return &Key{id: [IDSize]byte(id), aead: a}, nil
}

func newSuite(secret keys.Secret, s Suite) (tink.AEAD, error) {
	switch {
	case s == AES:
		return newDerived(secret)
	case s != XAES:
		return nil, fmt.Errorf("%w: suite %d is not known", ErrSuite, s)
	case fips140.Enforced():
		return nil, fmt.Errorf("%w: XAES-256-GCM is not approved by FIPS 140-3, and this process allows nothing else", ErrSuite)
	}
	raw, err := hkdf.Key(sha256.New, secret, nil, infoSeal, Size)
	if err != nil {
		return nil, errors.New("derive the sealing key of a local KEK failed")
	}
	defer clear(raw)
	a, err := newAEAD(raw)
	if err != nil {
		return nil, fmt.Errorf("build XAES-256-GCM: %w", err)
	}
	return a, nil
}

func newAEAD(raw []byte) (tink.AEAD, error) {
	params, err := xaesgcm.NewParameters(xaesgcm.VariantNoPrefix, saltSize)
	if err != nil {
		return nil, err
	}
	k, err := xaesgcm.NewKey(secretdata.NewBytesFromData(raw, insecuresecretdataaccess.Token{}), 0, params)
	if err != nil {
		return nil, err
	}
	m := keyset.NewManager()
	id, err := m.AddKey(k)
	if err != nil {
		return nil, err
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, err
	}
	h, err := m.Handle()
	if err != nil {
		return nil, err
	}
	return aead.New(h)
}
