//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
)

// With a kube-controller-manager, StorageVersionMigration does the work and patches do
// what it leaves out (events, which the garbage collector does not watch), on three API
// servers and an etcd of three members of which one is dead. No client notices.
func TestRotateByStorageVersionMigration(t *testing.T) {
	x := newTrioOf(t, newClusterOf(t, 3))
	x.startManager()
	const n = 100
	x.make(n, "secrets", "events", "widgets.example.com")
	if err := x.etcd.Peers[1].Kill(); err != nil {
		t.Fatal(err)
	}
	for i := range x.a { // what was on its way to that member may fail, and is none of ours
		x.within(30*time.Second, "it writes to the others", func(ctx context.Context) error {
			_, err := x.a[i].CreateSecret(ctx, fmt.Sprintf("after-%d-%d", i, time.Now().UnixNano()), "v")
			return err
		})
	}
	old := x.keyID(x.p[0])
	b := x.watch()
	x.cloud.Rotate(x.arn)
	x.within(30*time.Second, "new key_id from the plugin", func(context.Context) error {
		if x.keyID(x.p[0]) == old {
			return errors.New("still the old one")
		}
		return nil
	})
	next := x.keyID(x.p[0])
	args := x.rotateArgs("--to", next, "--via", "migration")
	// Killed when it has begun the first migration; the next run goes on with that, or
	// finds it ended, or nothing stale there any more.
	begun := begunMigrations(x.killed("re-encrypt: StorageVersionMigration kmsctl-", args...))
	x.bounce(1)
	out, log := x.kmsctl(0, args...)
	x.migrated(begun, log)
	if len(begun) == 0 || !strings.Contains(string(out), "everything is under key_id "+next) {
		t.Errorf("begun %v: %s%s", begun, log, out)
	}
	if list, err := x.a[0].Text(t.Context(), "/apis/storagemigration.k8s.io/v1/storageversionmigrations"); err != nil || strings.Contains(list, "kmsctl-") {
		t.Errorf("migrations are left behind: %s, %v", list, err)
	}
	kvs, err := x.etcd.List(t.Context(), "/registry/events/")
	if err != nil || len(kvs) < n {
		t.Fatalf("%d events, %v", len(kvs), err)
	}
	for _, kv := range kvs {
		if strings.Contains(string(kv.Value), old) {
			t.Errorf("%s is still under the old key_id", kv.Key)
			break
		}
	}
	b.check(t)
}

func (x *trio) startManager() {
	x.t.Helper()
	kubeconfig := filepath.Join(x.dir, "manager-kubeconfig")
	if err := controlplane.Kubeconfig(kubeconfig, x.a[0]); err != nil {
		x.t.Fatal(err)
	}
	m, err := controlplane.StartManager(x.t.Context(), bin, x.dir, kubeconfig)
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { _ = m.Kill() })
}

// make creates n objects of each resource.
func (x *trio) make(n int, resources ...string) {
	x.t.Helper()
	for i := range n {
		for _, resource := range resources {
			what := objects[resource]
			if err := x.a[i%3].Create(x.t.Context(), what.path, fmt.Sprintf(what.body, fmt.Sprintf("m%d", i))); err != nil {
				x.t.Fatal(err)
			}
		}
	}
}

var beginsMigration = regexp.MustCompile(`StorageVersionMigration (kmsctl-([a-z]+)\S+) of`)

// begunMigrations are names of migrations, by the first word of the resource's name.
func begunMigrations(log string) map[string]string {
	out := map[string]string{}
	for _, m := range beginsMigration.FindAllStringSubmatch(log, -1) {
		out[m[2]] = m[1]
	}
	return out
}

// migrated demands of a run that it had both resources migrated, unless the run before
// it had begun that, and that nothing was begun twice.
func (x *trio) migrated(begun map[string]string, log string) {
	x.t.Helper()
	again := begunMigrations(log)
	for _, resource := range []string{"secrets", "widgets.example.com"} {
		first, _, _ := strings.Cut(resource, ".")
		if !regexp.MustCompile("StorageVersionMigration of "+regexp.QuoteMeta(resource)+": (Succeeded|an earlier one, kmsctl-.*, has ended: Succeeded)").MatchString(log) && begun[first] == "" {
			x.t.Errorf("%s were not migrated: %s", resource, log)
		}
		if begun[first] != "" && again[first] != "" && again[first] != begun[first] {
			x.t.Errorf("%s was begun though %s had been", again[first], begun[first])
		}
	}
}

// An API server that nobody asks could write under the old key: one that lives, one that
// was killed and left its lease, one that was shut down and left only its Node. Each is
// named, with the command that helps, and nothing is changed; nor may a key go.
func TestOverlookedAPIServer(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a1, a2 := c.apiServer("api1", p), c.apiServer("api2", p)
	c.create(a2, "s")
	config := filepath.Join(c.dir, "p1/config.yaml")
	flags := append(c.kubeFlags(a1), c.etcdFlags()...)
	run := append([]string{"rotate", "run", "-n", "default", "--wait", "1s", "--encryption-config", filepath.Join(c.dir, "api1-encryption.yaml")}, flags...)
	plan := append([]string{"rotate", "plan", "--encryption-config", filepath.Join(c.dir, "api1-encryption.yaml"), "--plugin-config", config, "--plugins", p.HTTP()}, flags...)
	retire := append([]string{"retire", "prod", "-n", "default", "--no-snapshots", "--plugin-config", config, "--plugins", p.HTTP()}, flags...)
	refused := func(want string) {
		t.Helper()
		_, log := c.kmsctl(1, run...)
		if !strings.Contains(log, want) || !strings.Contains(log, "nothing was changed yet") {
			t.Errorf("rotate run: no %q in\n%s", want, log)
		}
		for _, args := range [][]string{plan, retire} {
			if out, _ := c.kmsctl(3, args...); !strings.Contains(string(out), want) {
				t.Errorf("%s: no %q in\n%s", args[0], want, out)
			}
		}
	}
	c.within(time.Minute, "the lease of api2", func(ctx context.Context) error { // written some time after /readyz
		_, err := c.leaseOf(ctx, a1, "api2")
		return err
	})
	refused(`an API server on host "api2" lives`)

	lease := c.lease(a1, "api2")
	if err := a2.Kill(); err != nil {
		t.Fatal(err)
	}
	c.renewedAt(a1, lease, time.Now().Add(-5*time.Minute))
	refused("kubectl delete lease -n kube-system " + lease)

	// What it was told to do: the lease goes, and the Node that is left still counts.
	if _, err := a1.Do(t.Context(), http.MethodDelete, leases+"/"+lease, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"api1", "api2"} {
		if err := a1.Create(t.Context(), "/api/v1/nodes", fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q,"labels":{"node-role.kubernetes.io/control-plane":""}}}`, name)); err != nil {
			t.Fatal(err)
		}
	}
	refused("2 control-plane Nodes (api1, api2) and 1 API servers were asked")
	out, _ := c.kmsctl(0, append(run, "--allow-unknown-apiservers")...)
	if !strings.Contains(string(out), "everything is under key_id "+c.keyID(p)) {
		t.Errorf("%s", out)
	}
}

const leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"

// lease is the name of the identity lease of the API server on a host.
func (c *cluster) lease(a *controlplane.APIServer, host string) string {
	c.t.Helper()
	name, err := c.leaseOf(c.t.Context(), a, host)
	if err != nil {
		c.t.Fatal(err)
	}
	return name
}

func (c *cluster) leaseOf(ctx context.Context, a *controlplane.APIServer, host string) (string, error) {
	raw, err := a.Do(ctx, http.MethodGet, leases+"?labelSelector=kubernetes.io/hostname="+host, "")
	var list struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	if err := errors.Join(err, json.Unmarshal(raw, &list)); err != nil || len(list.Items) != 1 {
		return "", fmt.Errorf("lease of host %s: %v in %s (every API server needs a hostname of its own, as root)", host, err, raw)
	}
	return list.Items[0].Metadata.Name, nil
}

// renewedAt makes a lease look as if its holder had last renewed it then.
func (c *cluster) renewedAt(a *controlplane.APIServer, lease string, at time.Time) {
	c.t.Helper()
	if err := renew(c.t.Context(), a, lease, at); err != nil {
		c.t.Fatal(err)
	}
}

func renew(ctx context.Context, a *controlplane.APIServer, lease string, at time.Time) error {
	raw, err := a.Do(ctx, http.MethodGet, leases+"/"+lease, "")
	var object map[string]any
	if err := errors.Join(err, json.Unmarshal(raw, &object)); err != nil {
		return err
	}
	object["spec"].(map[string]any)["renewTime"] = at.UTC().Format("2006-01-02T15:04:05.000000Z")
	if raw, err = json.Marshal(object); err == nil {
		_, err = a.Do(ctx, http.MethodPut, leases+"/"+lease, string(raw))
	}
	return err
}
