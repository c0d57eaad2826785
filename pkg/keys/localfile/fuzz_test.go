package localfile_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/localfile"
)

// Any file: a KEK that opens what it wraps, or a FileError.
func FuzzKeyset(f *testing.F) {
	path := filepath.Join(f.TempDir(), "keyset.json")
	if err := localfile.Create(path); err != nil {
		f.Fatal(err)
	}
	if err := localfile.AddKey(path); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(`{"primaryKeyId":1,"key":[{"keyId":1,"status":"ENABLED","outputPrefixType":"TINK"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := localfile.New(path)
		if err != nil {
			var fe *localfile.FileError
			if !errors.As(err, &fe) {
				t.Fatalf("New = %v, want a FileError", err)
			}
			return
		}
		bound := keys.NewContext("c", keys.BlobProbe, nil)
		w, err := k.Wrap(t.Context(), make(keys.Secret, 37), bound)
		if err != nil {
			t.Fatal(err)
		}
		if u, err := k.Unwrap(t.Context(), w.Blob, bound); err != nil || len(u.Plaintext) != 37 {
			t.Fatalf("Unwrap of what it wrapped = %v, %v", len(u.Plaintext), err)
		}
	})
}
