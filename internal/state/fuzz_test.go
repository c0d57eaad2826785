package state_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kms-plugin.io/internal/state"
)

// Any file, with a checksum that fits or without: read or ErrDamaged, and what is
// read is what Save writes.
func FuzzLoad(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, state.File)
	if err := state.Save(dir, example()); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(false, whole)
	f.Add(true, whole[65:])
	f.Add(true, []byte(`{"version":1,"clusterID":"c","keys":[{"name":"k","lastGood":{"boot":-1}}]}`))
	f.Add(true, []byte(`{"version":2,"clusterID":"c"}`))
	f.Add(true, []byte("{}{}"))
	f.Fuzz(func(t *testing.T, summed bool, data []byte) {
		if summed {
			sum := sha256.Sum256(data)
			data = append([]byte(hex.EncodeToString(sum[:])+"\n"), data...)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := state.Load(dir, "c")
		if err != nil {
			if s != nil || !errors.Is(err, state.ErrDamaged) {
				t.Fatalf("Load = %v, %v; want ErrDamaged alone", s, err)
			}
			return
		}
		if err := state.Save(dir, s); err != nil {
			return // a time that JSON cannot hold: the old file stays
		}
		again, err := state.Load(dir, "c")
		if err != nil {
			t.Fatalf("what was read and saved does not load: %v", err)
		}
		if d := cmp.Diff(s, again); d != "" {
			t.Fatalf("what was read and saved comes back changed:\n%s", d)
		}
	})
}
