//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// frozen waits until both API servers refuse to change a widget, or do not.
func (x *liars) frozen(want bool) {
	x.t.Helper()
	path := objects["widgets.example.com"].path + "/w0"
	for _, a := range x.a {
		x.within(30*time.Second, fmt.Sprintf("widgets are frozen: %t", want), func(ctx context.Context) error {
			raw, err := a.Do(ctx, http.MethodGet, path, "")
			if err != nil {
				return err
			}
			_, err = a.Do(ctx, http.MethodPut, path+"?dryRun=All", string(raw))
			if refused := err != nil && strings.Contains(err.Error(), "widgets are frozen"); refused != want {
				return fmt.Errorf("not yet: %v", err)
			}
			return nil
		})
	}
}

// lyingManager renews the lease of a kube-controller-manager and calls every migration
// done at once.
func (x *liars) lyingManager() (stop func()) {
	ctx, cancel := context.WithCancel(x.t.Context())
	done := make(chan struct{})
	const name = "kube-controller-manager"
	if err := x.a[0].Create(ctx, leases, `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"`+name+`","namespace":"kube-system"},"spec":{"holderIdentity":"liar"}}`); err != nil {
		x.t.Fatal(err)
	}
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := errors.Join(renew(ctx, x.a[0], name, time.Now()), x.allDone(ctx)); err != nil && ctx.Err() == nil {
				x.t.Errorf("the lying manager: %v", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (x *liars) allDone(ctx context.Context) error {
	raw, err := x.a[0].Do(ctx, http.MethodGet, migrationsAPI, "")
	var list struct{ Items []map[string]any }
	if err := errors.Join(err, json.Unmarshal(raw, &list)); err != nil {
		return err
	}
	for _, m := range list.Items {
		if _, ok := m["status"].(map[string]any)["conditions"]; ok {
			continue
		}
		m["apiVersion"], m["kind"] = "storagemigration.k8s.io/v1", "StorageVersionMigration"
		m["status"] = map[string]any{"resourceVersion": "1", "conditions": []any{map[string]any{"type": "Succeeded", "status": "True", "reason": "Done", "message": "all done", "lastTransitionTime": "2026-01-01T00:00:00Z"}}}
		data, err := json.Marshal(m)
		if err == nil {
			_, err = x.a[0].Do(ctx, http.MethodPut, migrationsAPI+"/"+m["metadata"].(map[string]any)["name"].(string)+"/status", string(data))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
