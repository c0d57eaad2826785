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
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kms-plugin.io/internal/etcdstore"
)

// restless is an etcd whose every write is compacted at once: only the newest
// revision can be read.
type restless struct {
	clientv3.KV
	mu       sync.Mutex
	kvs      []*mvccpb.KeyValue // by key
	revision int64
	fails    error // for so many calls
	times    int
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
	if r.times > 0 && key != "\x00" {
		r.times--
		return nil, r.fails
	}
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

// A walk waits a minute for an etcd that is away, in the middle, and goes on where it
// was; it does not wait for what will not pass. A scan, whose revision would be compacted
// away, ends at once.
func TestWalkWaitsForEtcd(t *testing.T) {
	refused := status.Error(codes.PermissionDenied, "etcdserver: permission denied")
	for name, tt := range map[string]struct {
		fails error
		times int
		walk  bool
		want  error
		least time.Duration
		most  time.Duration
	}{
		"back after a minute": {rpctypes.ErrNoLeader, 13, true, nil, time.Minute, time.Minute},
		"cannot be dialled":   {status.Error(codes.Unavailable, "refused"), 2, true, nil, 5 * time.Second, 5 * time.Second},
		"never back":          {rpctypes.ErrNoLeader, 1000, true, rpctypes.ErrNoLeader, time.Minute, time.Minute},
		"refused":             {refused, 1000, true, refused, 0, 0},
		"a scan":              {rpctypes.ErrNoLeader, 1000, false, rpctypes.ErrNoLeader, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, e := newRestless(5_000)
				r.fails, r.times = tt.fails, tt.times
				n, begun := 0, time.Now()
				_, err := e.readAll(t.Context(), !tt.walk, func(etcdstore.Info) (etcdstore.Visit, error) {
					return func(etcdstore.KV) error { n++; return nil }, nil
				})
				if !errors.Is(err, tt.want) || (err == nil) != (n == 5_000) {
					t.Errorf("%d keys, %v, want %v", n, err, tt.want)
				}
				if took := time.Since(begun); took < tt.least || took > tt.most {
					t.Errorf("it took %s", took)
				}
			})
		})
	}
}
