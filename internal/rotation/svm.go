package rotation

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/internal/stored"
)

// The ways to have objects written again.
const (
	ViaAuto      = "auto"      // StorageVersionMigration where it works, then patches for the rest
	ViaMigration = "migration" // the same, and an error where it does not work
	ViaPatch     = "patch"     // empty merge patches alone
)

var (
	migrations = schema.GroupVersionResource{Group: "storagemigration.k8s.io", Version: "v1", Resource: "storageversionmigrations"}
	leases     = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
)

// ignored is what the garbage collector does not watch by default, and so no migration
// sees: one would never end (pkg/controller/garbagecollector, DefaultIgnoredResources).
var ignored = schema.GroupResource{Resource: "events"}

const (
	migrationLabel = "kms-plugin.io/rotation" // its value is the start of the key_id's hash
	// stalled is when a migration that shows no sign of life is left to patches. It
	// waits for the garbage collector's cache, on an idle resource for over a minute
	// (k8s.io/kubernetes pkg/controller/storageversionmigrator).
	stalled = 3 * time.Minute
	// renewal is longer than kube-controller-manager takes to renew its lease.
	renewal = 12 * time.Second
)

// storageMigration has the cluster's own controller write objects again. Its word
// is never the proof: it knows nothing of key_ids, passes over what was written
// meanwhile, and does not see resources that the garbage collector ignores.
type storageMigration struct {
	o      Options
	client dynamic.NamespaceableResourceInterface
	label  string
	hash   string
	objs   []*underway
}

// underway is the migration of one resource.
type underway struct {
	resource schema.GroupResource
	stale    int64
	sample   target // a stale object; writing it wakes the controller's cache
	name     string
	state    string
	woken    bool
}

// migrateStorage returns when every migration has ended or is given up.
func migrateStorage(ctx context.Context, o Options, keyID string, m *migration, objs []*underway) error {
	s := &storageMigration{o: o, client: o.Servers[0].Dynamic.Resource(migrations), hash: metrics.KeyIDHash(keyID)}
	s.label = strings.TrimPrefix(s.hash, hashPrefix)[:16]
	if why := s.unusable(ctx); why != "" {
		if o.Via == ViaMigration {
			return &Error{"re-encrypt", "StorageVersionMigration cannot be used: " + why, "--via patch"}
		}
		o.Say("re-encrypt: by patches, for StorageVersionMigration cannot be used: %s", why)
		return nil
	}
	for _, u := range objs {
		if u.resource == ignored {
			continue
		}
		if err := s.begin(ctx, u); err != nil {
			o.Say("re-encrypt: StorageVersionMigration of %s: %v; it is left to patches", u.resource, err)
		}
	}
	return s.wait(ctx, m)
}

// unusable says why the API is not served, or that nobody works it off.
func (s *storageMigration) unusable(ctx context.Context) string {
	if _, err := s.client.List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		return err.Error()
	}
	first, err := s.renewed(ctx)
	if err != nil {
		return "kube-controller-manager: " + err.Error()
	}
	// A lease that changes is evidence that does not depend on anybody's clock.
	for deadline := time.Now().Add(cmp.Or(s.o.Renewal, renewal)); time.Now().Before(deadline); {
		if pause(ctx, s.o.Poll) != nil {
			break
		}
		if now, err := s.renewed(ctx); err == nil && now != first {
			return ""
		}
	}
	return fmt.Sprintf("kube-controller-manager has not renewed its lease for %s", cmp.Or(s.o.Renewal, renewal))
}

func (s *storageMigration) renewed(ctx context.Context) (string, error) {
	l, err := s.o.Servers[0].Dynamic.Resource(leases).Namespace(metav1.NamespaceSystem).Get(ctx, "kube-controller-manager", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	at, _, _ := unstructured.NestedString(l.Object, "spec", "renewTime")
	return at, nil
}

// begin takes up a migration that an earlier run began, or makes one. One that
// ended under this key_id already is not tried again.
func (s *storageMigration) begin(ctx context.Context, u *underway) error {
	list, err := s.client.List(ctx, metav1.ListOptions{LabelSelector: migrationLabel + "=" + s.label})
	if err != nil {
		return err
	}
	for _, x := range list.Items {
		group, _, _ := unstructured.NestedString(x.Object, "spec", "resource", "group")
		name, _, _ := unstructured.NestedString(x.Object, "spec", "resource", "resource")
		if (schema.GroupResource{Group: group, Resource: name}) != u.resource {
			continue
		}
		if state, _ := conditionOf(&x); state == "Succeeded" || state == "Failed" {
			return fmt.Errorf("an earlier one, %s, has ended: %s", x.GetName(), state)
		}
		u.name = x.GetName()
	}
	if u.name == "" {
		made, err := s.client.Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": migrations.GroupVersion().String(), "kind": "StorageVersionMigration",
			"metadata": map[string]any{"generateName": "kmsctl-" + u.resource.Resource + "-", "labels": map[string]any{migrationLabel: s.label}},
			"spec":     map[string]any{"resource": map[string]any{"group": u.resource.Group, "resource": u.resource.Resource}},
		}}, metav1.CreateOptions{FieldManager: "kmsctl"})
		if err != nil {
			return err
		}
		u.name = made.GetName()
	}
	s.o.Say("re-encrypt: StorageVersionMigration %s of %s, %d objects", u.name, u.resource, u.stale)
	s.objs = append(s.objs, u)
	return nil
}

// wait looks until all have ended, or nothing moves any more.
func (s *storageMigration) wait(ctx context.Context, m *migration) error {
	var total int64
	for _, u := range s.objs {
		total += u.stale
	}
	base, moved, last := int64(-1), time.Now(), int64(0)
	for len(s.objs) > 0 {
		if err := pause(ctx, s.o.Poll); err != nil {
			return err
		}
		written := max(last, s.written(ctx)) // an API server that was not reached counts as before
		if base < 0 {
			base = written
		}
		// Everybody's writes are in it, so beyond the total it is no sign of life.
		if s.look(ctx, m) || written != last && written-base <= total {
			moved = time.Now()
		}
		last = written
		s.o.progress(Reencrypting, min(written-base, total), total)
		if limit := cmp.Or(s.o.Stall, stalled); time.Since(moved) > limit {
			for _, u := range s.objs {
				s.o.Say("re-encrypt: StorageVersionMigration %s has not moved for %s; it is left to patches", u.name, limit)
			}
			return nil
		}
	}
	return nil
}

// look reads each migration once and drops those that have ended. It tells whether
// anything changed.
func (s *storageMigration) look(ctx context.Context, m *migration) (changed bool) {
	s.objs = slices.DeleteFunc(s.objs, func(u *underway) bool {
		x, err := s.client.Get(ctx, u.name, metav1.GetOptions{})
		if err != nil {
			return apierrors.IsNotFound(err) // somebody deleted it; else it may come back
		}
		state, message := conditionOf(x)
		if rv, _, _ := unstructured.NestedString(x.Object, "status", "resourceVersion"); rv != "" && !u.woken {
			u.woken = m.rewrite(ctx, 0, u.sample) == nil
			changed = true
		}
		if state != u.state {
			u.state, changed = state, true
			s.o.Say("re-encrypt: StorageVersionMigration of %s: %s: %s", u.resource, state, message)
		}
		return state == "Succeeded" || state == "Failed"
	})
	return changed
}

// conditionOf is the last of Running, Succeeded, Failed that is true.
func conditionOf(x *unstructured.Unstructured) (state, message string) {
	var status struct {
		Status struct {
			Conditions []metav1.Condition `json:"conditions"`
		} `json:"status"`
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(x.Object, &status); err != nil {
		return "Unknown", err.Error()
	}
	state = "Pending"
	for _, name := range []string{"Running", "Succeeded", "Failed"} {
		if c := meta.FindStatusCondition(status.Status.Conditions, name); c != nil && c.Status == metav1.ConditionTrue {
			state, message = name, c.Message
		}
	}
	return state, message
}

// written is how many objects all API servers have written under the key_id.
func (s *storageMigration) written(ctx context.Context) (n int64) {
	for _, x := range fleet.Servers(ctx, s.o.Servers, s.o.Provider) {
		n += x.Writes(s.hash)
	}
	return n
}

// removeMigrations clears away those of this key_id, after the proof.
func removeMigrations(ctx context.Context, o Options, keyID string) {
	label := strings.TrimPrefix(metrics.KeyIDHash(keyID), hashPrefix)[:16]
	// What is not served, or not ours to delete, does no harm.
	_ = o.Servers[0].Dynamic.Resource(migrations).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: migrationLabel + "=" + label})
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func groupResource(k stored.Key) schema.GroupResource {
	return schema.GroupResource{Group: k.Resource.Group, Resource: k.Resource.Resource}
}
