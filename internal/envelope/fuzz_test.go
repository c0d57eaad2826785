package envelope_test

import (
	"bytes"
	"errors"
	"testing"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
)

// What a ciphertext or a wrapped plaintext may be: of one type at most, and with one
// encoding.
func FuzzTypes(f *testing.F) {
	all := []keys.BlobType{keys.BlobLocalKEK, keys.BlobSeed, keys.BlobProbe}
	for _, t := range all {
		f.Add(envelope.Frame(t, make([]byte, 72)))
		f.Add([]byte(envelope.MarshalPlain(t, make([]byte, 32))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		framed, plain := 0, 0
		for _, kind := range all {
			if body, err := envelope.Unframe(kind, b); err == nil {
				framed++
				if !bytes.Equal(envelope.Frame(kind, body), b) {
					t.Fatalf("Frame(Unframe(%x)) differs", b)
				}
			} else if !errors.Is(err, keys.ErrMalformed) {
				t.Fatalf("Unframe = %v", err)
			}
			if secret, err := envelope.ParsePlain(kind, b); err == nil {
				plain++
				if !bytes.Equal(envelope.MarshalPlain(kind, secret), b) {
					t.Fatalf("MarshalPlain(ParsePlain(%x)) differs", b)
				}
			} else if !errors.Is(err, keys.ErrMalformed) {
				t.Fatalf("ParsePlain = %v", err)
			}
		}
		if framed > 1 || plain > 1 {
			t.Fatalf("%x is of several types", b)
		}
	})
}
