package etcdfill

import (
	"bytes"
	"maps"
	"path/filepath"
	"testing"

	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/etcdstore/snapshot"
	"kms-plugin.io/internal/stored"
)

// What is said to be in a snapshot is what the product finds there.
func TestSnapshot(t *testing.T) {
	const objects = 4000
	path := filepath.Join(t.TempDir(), "snapshot.db")
	want, err := Snapshot(path, objects)
	if err != nil {
		t.Fatal(err)
	}
	s, err := snapshot.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := coverage.Scan(t.Context(), s, coverage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, k := range r.Keys {
		got[k.KeyID] = k.Objects
		if k.Foreign+k.BadHeaders > 0 || k.LocalKEKs != 2*localKEKs || k.Seeds != 2*localKEKs*seeds {
			t.Errorf("key %+v", k)
		}
	}
	if r.Totals.Total != objects || want.Objects != objects || !maps.Equal(got, want.KeyIDs) || len(got) != 2 || r.Totals.Broken != 0 {
		t.Errorf("%+v, %v, want %+v", r.Totals, got, want)
	}
	if i := r.Source; i.Revision != want.Revision || i.Bytes != want.FileSize || !i.Verified || i.Version != "3.7.0" || want.Revision <= objects {
		t.Errorf("source %+v, want %+v", i, want)
	}
}

// An object has the bytes of a real one, but for what is random or its own.
func TestValuesAreReal(t *testing.T) {
	values, err := Values()
	if err != nil {
		t.Fatal(err)
	}
	bySize := map[int]stored.Value{}
	for _, v := range values {
		bySize[len(v.Value)] = stored.Classify(v.Value)
	}
	path := filepath.Join(t.TempDir(), "snapshot.db")
	if _, err := Snapshot(path, 80); err != nil {
		t.Fatal(err)
	}
	s, err := snapshot.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	datas := map[string]bool{}
	err = s.Scan(t.Context(), func(etcdstore.Info) (etcdstore.Visit, error) {
		return func(kv etcdstore.KV) error {
			real, ok := bySize[len(kv.Value)]
			v := stored.Classify(kv.Value)
			if !ok || v.Kind != real.Kind || !bytes.Equal(v.Name, real.Name) {
				t.Errorf("%s is %s of %d bytes", kv.Key, v.Kind, len(kv.Value))
			}
			if v.Kind != stored.KMSv2 {
				return nil
			}
			if datas[string(v.Object.Data)] || bytes.Equal(v.Object.Data, real.Object.Data) {
				t.Errorf("%s has the data of another object", kv.Key)
			}
			datas[string(v.Object.Data)] = true
			h, err := envelope.Parse(v.Object.Annotation(envelope.AnnotationKey))
			if err != nil || h.Identity == "" {
				t.Errorf("%s: header %+v: %v", kv.Key, h, err)
			}
			return nil
		}, nil
	})
	if err != nil || len(datas) != 40 {
		t.Errorf("%d encrypted objects, want 40: %v", len(datas), err)
	}
}
