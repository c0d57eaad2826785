package live

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kms-plugin.io/internal/etcdstore"
)

// restless is an etcd whose every write is compacted at once: only the newest
// revision can be read.
type restless struct {
	clientv3.KV
	mu       sync.Mutex
	kvs      []*mvccpb.KeyValue // by key
	revision int64
}

func (r *restless) find(key string) (int, bool) {
	return slices.BinarySearchFunc(r.kvs, key, func(kv *mvccpb.KeyValue, key string) int { return cmp.Compare(string(kv.Key), key) })
}

func (r *restless) put(key, value string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revision++
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: r.revision}
	i, known := r.find(key)
	if known {
		r.kvs[i] = kv
		return
	}
	r.kvs = slices.Insert(r.kvs, i, kv)
}

func (r *restless) Get(_ context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	op := clientv3.OpGet(key, opts...)
	if op.Rev() != 0 && op.Rev() < r.revision {
		return nil, rpctypes.ErrCompacted
	}
	i, _ := r.find(key)
	rest := r.kvs[i:]
	n := min(len(rest), int(op.Limit()))
	return &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: r.revision}, Count: int64(len(rest)), Kvs: slices.Clone(rest[:n]), More: n < len(rest)}, nil
}

func newRestless(n int) (*restless, *Etcd) {
	r := &restless{}
	for i := range n {
		r.put(fmt.Sprintf("/a/%06d", i), "old")
	}
	return r, &Etcd{client: &clientv3.Client{KV: r}, config: Config{Endpoints: []string{"test"}}}
}

// A walk goes on whatever is compacted, visits each key once, in order, though all
// are written on the way, and finds what was written ahead of it.
func TestWalkOutlivesCompaction(t *testing.T) {
	r, e := newRestless(20_000)
	begun, n, last := 0, 0, ""
	err := e.Walk(t.Context(), func(info etcdstore.Info) (etcdstore.Visit, error) {
		if begun++; info.Keys != 20_000 || info.Revision != 20_000 {
			t.Errorf("%+v", info)
		}
		return func(kv etcdstore.KV) error {
			key := string(kv.Key)
			if n++; key <= last {
				t.Fatalf("%s comes after %s", key, last)
			}
			last = key
			r.put(key, "new")
			r.put("/b", "new")
			return nil
		}, nil
	})
	if err != nil || begun != 1 || n != 20_001 || last != "/b" {
		t.Errorf("begun %d times, %d keys, the last is %s: %v", begun, n, last, err)
	}
	stop := errors.New("stop")
	if err := e.Walk(t.Context(), func(etcdstore.Info) (etcdstore.Visit, error) {
		return func(etcdstore.KV) error { return stop }, nil
	}); !errors.Is(err, stop) {
		t.Errorf("an error of the visit: %v", err)
	}
}

// A scan is of one revision or ends, with a hint that fits every command.
func TestScanGivesUp(t *testing.T) {
	r, e := newRestless(1_000)
	compacted := 0
	e.config.Compacted = func(int64) { compacted++ }
	err := e.Scan(t.Context(), func(etcdstore.Info) (etcdstore.Visit, error) {
		r.put("/b", "new")
		return func(etcdstore.KV) error { return nil }, nil
	})
	var told *Error
	if !errors.As(err, &told) || !strings.Contains(err.Error(), "compacted away") || compacted != maxRestarts {
		t.Errorf("%v, after %d compactions", err, compacted)
	} else if !strings.Contains(told.Hint(), "--etcd-compaction-interval") || !strings.Contains(told.Hint(), "kmsctl coverage --snapshot FILE") {
		t.Errorf("hint: %s", told.Hint())
	}
}
