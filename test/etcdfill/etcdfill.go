// Package etcdfill makes etcd snapshots of any size out of a few values that a real
// kube-apiserver stored (values.json; test/e2e holds them against what it stores
// today, and writes them with -update). Every object has the bytes of one of them,
// with another key, and fresh bytes where it has ciphertext, a wrapped seed or a
// local KEK. It must not know who reads them.
package etcdfill

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/stored"
)

// Value is one stored value.
type Value struct {
	Key   string `json:"key"` // /registry/RESOURCE/default/NAME
	Value []byte `json:"value"`
}

//go:embed values.json
var embedded []byte

// Values are the real ones.
func Values() ([]Value, error) {
	var out []Value
	if err := json.Unmarshal(embedded, &out); err != nil {
		return nil, fmt.Errorf("values.json: %w", err)
	}
	return out, nil
}

const (
	localKEKs  = 4  // of each value: one for each instance and restart
	seeds      = 32 // under each of them: one for each start of an API server
	namespaces = 500
)

// mould makes objects of one real value.
type mould struct {
	before, after string // the key, but for its namespace
	keyID         string // "" if not encrypted
	variants      [][]byte
	made          int
}

func moulds(rnd *rand.ChaCha8) ([]mould, error) {
	values, err := Values()
	if err != nil {
		return nil, err
	}
	out := make([]mould, 0, len(values))
	for _, v := range values {
		before, after, ok := strings.Cut(v.Key, "/default/")
		if !ok {
			return nil, fmt.Errorf("values.json: key %q has no namespace", v.Key)
		}
		m := mould{before: before, after: after, variants: [][]byte{v.Value}}
		if c := stored.Classify(v.Value); c.Kind == stored.KMSv2 {
			m.keyID = string(c.Object.KeyID)
			if m.variants, err = variants(v.Value, rnd); err != nil {
				return nil, fmt.Errorf("values.json: %s: %w", v.Key, err)
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// variants are a value as other instances and other API servers would have
// written it: with other local KEKs and seeds, all of the same key_id.
func variants(value []byte, rnd *rand.ChaCha8) ([][]byte, error) {
	out := make([][]byte, 0, localKEKs*seeds)
	for range localKEKs {
		base := bytes.Clone(value)
		o := stored.Classify(base).Object
		h, err := envelope.Parse(o.Annotation(envelope.AnnotationKey))
		if err != nil {
			return nil, err
		}
		// These alias base. The header's copy of the local KEK's id does not.
		i := bytes.Index(base, h.LocalKEK[:])
		refill(rnd, base[i:i+envelope.LocalKEKID], h.Wrapped)
		for range seeds {
			v := bytes.Clone(base)
			refill(rnd, stored.Classify(v).Object.EncryptedDEKSource[2:]) // after its frame
			out = append(out, v)
		}
	}
	return out, nil
}

func refill(rnd *rand.ChaCha8, parts ...[]byte) {
	for _, p := range parts {
		_, _ = rnd.Read(p) // never fails
	}
}

// key of the i-th object.
func (m *mould) key(i int) []byte {
	return fmt.Appendf(nil, "%s/ns-%03d/%s-%07d", m.before, i%namespaces, m.after, i)
}

// value of another object; valid until the next one of the same mould.
func (m *mould) value(rnd *rand.ChaCha8) []byte {
	v := m.variants[m.made%len(m.variants)]
	m.made++
	if m.keyID != "" {
		refill(rnd, stored.Classify(v).Object.Data)
	}
	return v
}
