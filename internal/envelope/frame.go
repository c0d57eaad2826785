package envelope

import "kms-plugin.io/pkg/keys"

// Ciphertext limits in bytes. kube-apiserver refuses more than 1024
// (k8s.io/apiserver envelope/kmsv2.validateEncryptedDEKSource).
const (
	frameSize     = 2
	MaxCiphertext = 1024
)

// Frame puts the two bytes of framing before a sealed or wrapped seed.
func Frame(t keys.BlobType, body []byte) []byte {
	return append([]byte{Format, byte(t)}, body...)
}

// Unframe checks the framing of an untrusted ciphertext against the type that
// its header names. Errors wrap keys.ErrMalformed.
func Unframe(t keys.BlobType, ciphertext []byte) ([]byte, error) {
	switch {
	case len(ciphertext) > MaxCiphertext:
		return nil, malformed("ciphertext has %d bytes, at most %d are allowed", len(ciphertext), MaxCiphertext)
	case len(ciphertext) <= frameSize:
		return nil, malformed("ciphertext has only %d bytes", len(ciphertext))
	case ciphertext[0] != Format:
		return nil, malformed("ciphertext format %d is not known to this release, which reads format %d", ciphertext[0], Format)
	case ciphertext[1] != byte(t):
		return nil, malformed("ciphertext of blob type %d under a header of blob type %d", ciphertext[1], uint8(t))
	}
	return ciphertext[frameSize:], nil
}

// Plain is what a KEK really wraps: 4 bytes "KMSP", the blob type, and the
// payload. The type inside the wrap keeps a local KEK from ever coming back as
// the answer to a Decrypt, even if a provider ignored the encryption context.
//
//	local-kek  32 bytes of local KEK
//	seed       32 bytes digest of the header, 32 bytes of DEK seed
//	probe      32 random bytes
const plainMagic = "KMSP"

// SeedSize is what kube-apiserver asks us to encrypt: always 32 bytes
// (k8s.io/apiserver encryptionconfig: aes.GenerateKey(32)).
const SeedSize = 32

var plainSize = map[keys.BlobType]int{keys.BlobLocalKEK: 32, keys.BlobSeed: 32 + SeedSize, keys.BlobProbe: 32}

// MarshalPlain frames a payload for wrapping. The result is a fresh copy.
func MarshalPlain(t keys.BlobType, payload ...[]byte) keys.Secret {
	b := make(keys.Secret, 0, 5+64)
	b = append(append(b, plainMagic...), byte(t))
	for _, p := range payload {
		b = append(b, p...)
	}
	return b
}

// ParsePlain checks what an unwrap answered and returns the payload, which
// aliases b. Errors wrap keys.ErrMalformed and never hold the bytes.
func ParsePlain(t keys.BlobType, b keys.Secret) (keys.Secret, error) {
	n, known := plainSize[t]
	switch {
	case len(b) < 5 || string(b[:4]) != plainMagic:
		return nil, malformed("what the KEK unwrapped is not of this plugin")
	case keys.BlobType(b[4]) != t:
		return nil, malformed("what the KEK unwrapped is of blob type %d, not %d", b[4], uint8(t))
	case !known || len(b) != 5+n:
		return nil, malformed("what the KEK unwrapped has the wrong size")
	}
	return b[5:], nil
}
