package rotation

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

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
	total    int64 // stale objects that are left to patches, as far as is known
	none     bool  // etcd has none, so it need not be walked through
	before   int64 // written when run began

	mu     sync.Mutex // of what follows, and of calls to Progress
	failed map[string]int64
	met    int64 // stale objects that run came upon
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

// start counts what is stale, and has the cluster's own controller write what it can.
func (m *migration) start(ctx context.Context) error {
	objs, err := m.count(ctx)
	if err != nil || m.o.Via == ViaPatch || len(objs) == 0 {
		return err
	}
	if err := migrateStorage(ctx, m.o, m.keyID, m, objs); err != nil {
		return err
	}
	unsure := false
	for _, u := range objs {
		if u.state == "Succeeded" {
			m.total -= u.stale
		} else if u.name != "" { // failed or given up, and who knows what it has done
			unsure = true
		}
	}
	if unsure {
		_, err = m.count(ctx)
	}
	return err
}

// run walks through etcd once and patches what is stale. Objects that cannot be written
// are named; whether that matters the proof tells.
func (m *migration) run(ctx context.Context) (written int64, failures []string, err error) {
	if m.none {
		return m.written.Load(), nil, nil
	}
	m.before = m.written.Load()
	m.tell()
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan target, workers)
	for i := range workers {
		g.Go(func() error {
			for t := range work {
				if err := m.rewrite(ctx, i, t); err != nil {
					return err
				}
				m.tell()
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
