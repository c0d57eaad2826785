package rotation

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/stored"
)

// each walks through etcd and visits what is stale; read is told how many keys it
// passed. A walk may take hours: it stops for no compaction, and passes each object
// once.
func (m *migration) each(ctx context.Context, read func(done, total int64), visit func(stored.Key, etcdstore.KV) error) error {
	return m.o.Source.Walk(ctx, func(info etcdstore.Info) (etcdstore.Visit, error) {
		n := int64(0)
		return func(kv etcdstore.KV) error {
			if n%64 == 0 {
				read(n, info.Keys)
			}
			n++
			k := stored.ParseKey(kv.Key, m.o.Prefix)
			if !m.stale(k, kv.Value) {
				return nil
			}
			return visit(k, kv)
		}, nil
	})
}

// find hands on what is stale.
func (m *migration) find(ctx context.Context, work chan<- target) error {
	return m.each(ctx, m.tellRead, func(k stored.Key, kv etcdstore.KV) error {
		m.meet()
		t, err := m.locate(ctx, k, kv.Key)
		if err != nil {
			m.fail(fmt.Sprintf("%s: %v", k.Resource, err))
			return nil
		}
		select {
		case work <- t:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// count sets total, and counts by resource too, with one object of each.
func (m *migration) count(ctx context.Context) (out []*underway, err error) {
	n := int64(0)
	err = m.each(ctx, m.o.reading(Reading), func(k stored.Key, kv etcdstore.KV) error {
		n++
		i := slices.IndexFunc(out, func(u *underway) bool { return u.resource == groupResource(k) })
		if i < 0 {
			t, err := m.locate(ctx, k, kv.Key)
			if err != nil {
				return nil // run names it
			}
			out = append(out, &underway{resource: groupResource(k), sample: t})
			i = len(out) - 1
		}
		out[i].stale++
		return nil
	})
	m.total, m.none = n, err == nil && n == 0
	return out, err
}

// stale tells whether the provider should have written a value and has not, under
// this key.
func (m *migration) stale(k stored.Key, value []byte) bool {
	if k.Exempt || k.Outside || !k.Known || !m.o.Encryption.Writes(k.Resource).Is(stored.KMSv2, m.o.Provider) {
		return false
	}
	v := stored.Classify(value)
	return v.Kind != stored.KMSv2 || string(v.Name) != m.o.Provider || string(v.Object.KeyID) != m.keyID
}

// locate finds the object's path in the API: the last segments of its key are
// [namespace/]name.
func (m *migration) locate(ctx context.Context, k stored.Key, key []byte) (target, error) {
	version, err := m.version(ctx, k.Resource)
	if err != nil {
		return target{}, err
	}
	rest := bytes.TrimPrefix(key, []byte(m.o.Prefix+"/"))
	for range k.Place {
		_, rest, _ = bytes.Cut(rest, []byte("/"))
	}
	t := target{resource: schema.GroupVersionResource{Group: k.Resource.Group, Version: version, Resource: k.Resource.Resource}}
	switch parts := strings.Split(string(rest), "/"); len(parts) {
	case 1:
		t.name = parts[0]
	case 2:
		t.namespace, t.name = parts[0], parts[1]
	default:
		return t, fmt.Errorf("key %q is not of the form [namespace/]name", key)
	}
	return t, nil
}
