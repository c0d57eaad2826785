package state_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kms-plugin.io/internal/boottime"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
)

func example() *state.State {
	return &state.State{ClusterID: "c", Active: &state.Active{KeyID: "k:1", Header: []byte{1, 2}}, Turned: time.Unix(5, 0).UTC(),
		Keys:    []state.Key{{Name: "k", Identity: "i", Context: "00", Role: keys.RoleWrite, LastGood: boottime.Take(), Kept: &state.Kept{Type: keys.BlobProbe, Blob: []byte{3}}}},
		Journal: []state.Reported{{KeyID: "k:1", Identity: "i", Generation: 1, Wrapping: keys.WrapDirect}}}
}

func TestSaveLoad(t *testing.T) {
	dir := t.TempDir()
	if s, err := state.Load(dir, "c"); s != nil || err != nil {
		t.Fatalf("Load of nothing = %v, %v", s, err)
	}
	want := example()
	if err := state.Save(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := state.Load(dir, "c")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("what was saved comes back changed:\n%s", d)
	}
	info, err := os.Stat(filepath.Join(dir, state.File))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if _, err := state.Load(dir, "other"); !errors.Is(err, state.ErrDamaged) || !strings.Contains(err.Error(), `belongs to cluster "c"`) {
		t.Errorf("Load for another cluster = %v", err)
	}
}

// Every truncation and every changed byte is seen.
func TestDamageIsSeen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, state.File)
	if err := state.Save(dir, example()); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := state.Load(dir, "c"); !errors.Is(err, state.ErrDamaged) {
			t.Fatalf("%s: Load = %v, want ErrDamaged", what, err)
		}
	}
	for i := 0; i < len(whole); i += 13 {
		try("cut", whole[:i])
		c := append([]byte(nil), whole...)
		c[i] ^= 1
		try("changed", c)
	}
}

func TestElapsedIsByBootTime(t *testing.T) {
	s := boottime.Take()
	s.Wall = s.Wall.Add(-100 * time.Hour) // the clock was set
	if d := s.Elapsed(); d > time.Minute {
		t.Errorf("elapsed %s in the same boot, want none", d)
	}
	s.BootID = "another"
	if d := s.Elapsed(); d < 99*time.Hour {
		t.Errorf("elapsed %s since another boot, want 100h", d)
	}
	s.Wall = time.Now().Add(time.Hour)
	if d := s.Elapsed(); d != 0 {
		t.Errorf("elapsed %s since a future stamp, want 0", d)
	}
}
