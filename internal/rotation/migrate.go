package rotation

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/stored"
)

// migration has objects written again by empty merge patches: the API server
// sees no change, finds the stored value stale, and writes it with its current
// key (k8s.io/apiserver etcd3.GuaranteedUpdate). Nothing that a client wrote can be
// lost: nothing of the object is sent.
type migration struct {
	o        Options
	keyID    string
	limit    *pace
	versions map[stored.GroupResource]found
	written  atomic.Int64
	mu       sync.Mutex
	failed   map[string]int64
}

const (
	workers    = 8
	patchTries = 4
	maxCauses  = 5
)

func newMigration(o Options, keyID string) *migration {
	return &migration{o: o, keyID: keyID, limit: newPace(o.QPS), versions: map[stored.GroupResource]found{}, failed: map[string]int64{}}
}

// target is an object as the API has it.
type target struct {
	resource  schema.GroupVersionResource
	namespace string
	name      string
}

// run reads etcd once and patches what is stale. Objects that cannot be written
// are named; whether that matters the proof tells.
func (m *migration) run(ctx context.Context) (written int64, failures []string, err error) {
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan target, workers)
	for i := range workers {
		g.Go(func() error {
			for t := range work {
				if err := m.rewrite(ctx, i, t); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(work)
		return m.find(ctx, work)
	})
	err = g.Wait()
	for _, cause := range slices.Sorted(keysOf(m.failed)) {
		if len(failures) < maxCauses {
			failures = append(failures, fmt.Sprintf("%d times: %s", m.failed[cause], cause))
		}
	}
	return m.written.Load(), failures, err
}

func keysOf(m map[string]int64) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (m *migration) find(ctx context.Context, work chan<- target) error {
	return m.o.Source.Scan(ctx, func(info etcdstore.Info) (etcdstore.Visit, error) {
		n := int64(0)
		return func(kv etcdstore.KV) error {
			if m.o.Progress != nil && n%64 == 0 {
				m.o.Progress(n, info.Keys)
			}
			n++
			k := stored.ParseKey(kv.Key, m.o.Prefix)
			if !m.stale(k, kv.Value) {
				return nil
			}
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
		}, nil
	})
}

// staleByResource counts what is stale, and keeps one object of each resource.
func (m *migration) staleByResource(ctx context.Context) (out []*underway, err error) {
	err = m.o.Source.Scan(ctx, func(etcdstore.Info) (etcdstore.Visit, error) {
		out = nil
		return func(kv etcdstore.KV) error {
			k := stored.ParseKey(kv.Key, m.o.Prefix)
			if !m.stale(k, kv.Value) {
				return nil
			}
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
		}, nil
	})
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

// rewrite patches one object, each time through the next API server. Only a
// canceled run is an error.
func (m *migration) rewrite(ctx context.Context, worker int, t target) error {
	var err error
	for try := range patchTries {
		s := m.o.Servers[(worker+try)%len(m.o.Servers)]
		if err := m.limit.wait(ctx); err != nil {
			return err
		}
		begun := time.Now()
		_, err = s.Dynamic.Resource(t.resource).Namespace(t.namespace).Patch(ctx, t.name, types.MergePatchType, []byte("{}"), metav1.PatchOptions{FieldManager: "kmsctl"})
		m.limit.took(time.Since(begun), err)
		switch {
		case err == nil:
			m.written.Add(1)
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case apierrors.IsNotFound(err):
			// Deleted meanwhile, or not served: the proof tells, and this is a cause if it fails.
			m.fail(fmt.Sprintf("%s: not found by the API", t.resource.GroupResource()))
			return nil
		case !again(err):
			m.fail(fmt.Sprintf("%s %s/%s: %v", t.resource.GroupResource(), t.namespace, t.name, err))
			return nil
		}
		if err := pause(ctx, 250*time.Millisecond<<try); err != nil {
			return err
		}
	}
	m.fail(fmt.Sprintf("%s %s/%s: %v", t.resource.GroupResource(), t.namespace, t.name, err))
	return nil
}

// again tells what may pass; whatever is no answer of an API server may.
func again(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) || apierrors.IsInternalError(err) ||
		apierrors.IsTimeout(err) || apierrors.IsServiceUnavailable(err) || apierrors.ReasonForError(err) == metav1.StatusReasonUnknown
}

func (m *migration) fail(cause string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.failed) < 1000 || m.failed[cause] > 0 {
		m.failed[cause]++
	}
}

// pace keeps the latency of the API sane: it halves the rate when a write is
// slow or refused, and comes back by a fiftieth of the limit a write.
type pace struct {
	*rate.Limiter
	mu    sync.Mutex
	most  float64
	slow  time.Duration
	least float64
}

const slowWrite = 500 * time.Millisecond

func newPace(qps float64) *pace {
	return &pace{Limiter: rate.NewLimiter(rate.Limit(qps), workers), most: qps, slow: slowWrite, least: min(1, qps)}
}

func (p *pace) wait(ctx context.Context) error { return p.Wait(ctx) }

func (p *pace) took(d time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := float64(p.Limit())
	if d > p.slow || err != nil && !apierrors.IsNotFound(err) {
		now = max(now/2, p.least)
	} else {
		now = min(now+p.most/50, p.most)
	}
	p.SetLimit(rate.Limit(now))
}
