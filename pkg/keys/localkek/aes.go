package localkek

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"

	"github.com/tink-crypto/tink-go/v2/tink"

	"kms-plugin.io/pkg/keys"
)

// derived seals by AES-256-GCM, each time under a key of its own:
//
//	16  salt, random
//	12  nonce, random (cipher.NewGCMWithRandomNonce)
//	 .  ciphertext and 16 bytes of tag
//
// The key of a seal is HKDF-SHA256 of the sealing key with the salt. A 96-bit
// random nonce alone would bound a local KEK to 2^32 seals; no key here seals
// twice. All of it is approved by FIPS 140-3 (NIST SP 800-56C, SP 800-38D).
type derived struct{ prk []byte }

const (
	saltBytes = 16
	nonceTag  = 12 + 16
	infoAES   = "kms-plugin.io/local-kek/seal-aes/v1"
	infoOnce  = "kms-plugin.io/local-kek/seal-aes/once/v1"
)

var _ tink.AEAD = (*derived)(nil)

func newDerived(secret keys.Secret) (*derived, error) {
	prk, err := hkdf.Key(sha256.New, secret, nil, infoAES, Size)
	if err != nil {
		return nil, errors.New("derive the sealing key of a local KEK failed")
	}
	return &derived{prk}, nil
}

func (d *derived) once(salt []byte) (cipher.AEAD, error) {
	raw, err := hkdf.Key(sha256.New, d.prk, salt, infoOnce, Size)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	b, err := aes.NewCipher(raw)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(b)
}

// Encrypt implements tink.AEAD.
func (d *derived) Encrypt(plaintext, ad []byte) ([]byte, error) {
	out := make([]byte, saltBytes, saltBytes+nonceTag+len(plaintext))
	if _, err := rand.Read(out); err != nil {
		return nil, err
	}
	a, err := d.once(out)
	if err != nil {
		return nil, err
	}
	return a.Seal(out, nil, plaintext, ad), nil
}

// Decrypt implements tink.AEAD.
func (d *derived) Decrypt(sealed, ad []byte) ([]byte, error) {
	if len(sealed) < saltBytes+nonceTag {
		return nil, ErrSeal
	}
	a, err := d.once(sealed[:saltBytes])
	if err != nil {
		return nil, err
	}
	return a.Open(nil, nil, sealed[saltBytes:], ad)
}
