package custody_test

import (
	"testing"

	"kms-plugin.io/internal/custody"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
)

// Whatever a state file remembers, with a checksum that fits: the instance starts, and
// reports that key_id only if the header is one of its ring and belongs to it.
func FuzzRemembered(f *testing.F) {
	h := &envelope.Header{Suite: envelope.SuiteXAES, Type: keys.BlobLocalKEK, Identity: "test:a", Material: "m1", Generation: 1,
		Cluster: envelope.ClusterDigest("prod"), Wrapped: make([]byte, 60)}
	e := keys.Entry{Name: "prod", Role: keys.RoleWrite, Generation: 1, KEK: newCloud("a")}
	r, err := keys.NewRing("prod", keys.WrapLocalKEK, e)
	if err != nil {
		f.Fatal(err)
	}
	h.Context = r.Entries()[0].ContextDigest()
	raw, err := h.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	good := keys.KeyID("prod", h.Facts("prod"))
	f.Add(good, raw, []byte("m1|x"))
	f.Add(good, raw[:len(raw)-1], []byte(nil))
	f.Add("prod:00000000000000000000000000000000", raw, []byte{})
	f.Fuzz(func(t *testing.T, keyID string, header, kept []byte) {
		dir := t.TempDir()
		s := &state.State{ClusterID: "prod", Active: &state.Active{KeyID: keyID, Header: header}, Journal: []state.Reported{{KeyID: keyID}},
			Keys: []state.Key{{Name: "prod", Identity: "test:a", Kept: &state.Kept{Type: keys.BlobProbe, Blob: kept}}}}
		if err := state.Save(dir, s); err != nil {
			return
		}
		c, err := custody.New(custody.Config{Ring: r, Tuning: tuning, StateDir: dir, Force: true, Observer: &watcher{}})
		if err != nil {
			t.Fatal(err)
		}
		id, err := c.KeyID()
		if err != nil {
			return
		}
		p, perr := envelope.Parse(header)
		label, _, serr := keys.SplitKeyID(id)
		if id != keyID || perr != nil || serr != nil || keys.KeyID(label, p.Facts("prod")) != id {
			t.Fatalf("key_id %q is reported for %q and header %x", id, keyID, header)
		}
		if _, err := c.Seal(t.Context(), append(keys.Secret(nil), seed...)); err == nil {
			t.Fatal("it seals by what it only remembers")
		}
	})
}
