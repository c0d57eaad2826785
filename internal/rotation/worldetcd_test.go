package rotation

import (
	"context"
	"errors"
	"maps"
	"slices"

	"kms-plugin.io/internal/etcdstore"
)

var (
	errCompacted = errors.New("required revision has been compacted")
	errRestless  = errors.New("compacted away while it was read, for the 11th time")
)

// Scan starts over, and gives up, as live.Etcd does.
func (w *world) Scan(_ context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	for range 11 {
		if err := w.scanOnce(begin); !errors.Is(err, errCompacted) {
			return err
		}
	}
	return errRestless
}

func (w *world) scanOnce(begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	w.begin()
	w.mu.Lock()
	copied, written := maps.Clone(w.etcd), len(w.patched)
	w.mu.Unlock()
	visit, err := begin(etcdstore.Info{Revision: int64(w.scans), Keys: int64(len(copied))})
	if err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(copied)) {
		w.mu.Lock()
		gone := w.compact > 0 && len(w.patched)-written >= w.compact
		w.mu.Unlock()
		if gone {
			return errCompacted
		}
		if err := visit(etcdstore.KV{Key: []byte(k), Value: []byte(copied[k]), ModRevision: int64(w.scans)}); err != nil {
			return err
		}
	}
	return nil
}

// Walk reads small pages, each as etcd is then.
func (w *world) Walk(_ context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	w.begin()
	visit, err := begin(etcdstore.Info{Revision: int64(w.scans), Keys: int64(len(w.page("", -1)))})
	if err != nil {
		return err
	}
	for last := ""; ; {
		kvs := w.page(last, 7)
		for _, kv := range kvs {
			if err := visit(kv); err != nil {
				return err
			}
			last = string(kv.Key)
		}
		if len(kvs) == 0 {
			return nil
		}
	}
}

func (w *world) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.scans++
	if w.onScan != nil {
		w.onScan(w, w.scans)
	}
}

// page is what comes behind a key.
func (w *world) page(last string, limit int) (out []etcdstore.KV) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(w.etcd)) {
		if k > last && len(out) != limit {
			out = append(out, etcdstore.KV{Key: []byte(k), Value: []byte(w.etcd[k]), ModRevision: int64(w.scans)})
		}
	}
	return out
}
