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
// what it leaves out (events, which the garbage collector does not watch), on an etcd of
// three members of which one dies on the way.
func TestRotateByStorageVersionMigration(t *testing.T) {
	c := newClusterOf(t, 3)
	p := c.plugin("p1", "")
	a := c.apiServer("api1", p)
	c.serveWidgets(a)
	kubeconfig := filepath.Join(c.dir, "manager-kubeconfig")
	if err := controlplane.Kubeconfig(kubeconfig, a); err != nil {
		t.Fatal(err)
	}
	m, err := controlplane.StartManager(t.Context(), bin, c.dir, kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill() })
	const n = 100
	for i := range n {
		for _, resource := range []string{"secrets", "events", "widgets.example.com"} {
			what := objects[resource]
			if err := a.Create(t.Context(), what.path, fmt.Sprintf(what.body, fmt.Sprintf("m%d", i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	old := c.keyID(p)
	c.cloud.Rotate(c.arn)
	c.within(30*time.Second, "new key_id from the plugin", func(context.Context) error {
		if c.keyID(p) == old {
			return errors.New("still the old one")
		}
		return nil
	})
	if err := c.etcd.Peers[1].Kill(); err != nil {
		t.Fatal(err)
	}
	args := append(append([]string{"rotate", "run", "-n", "default", "--to", c.keyID(p), "--via", "migration", "--encryption-config", filepath.Join(c.dir, "api1-encryption.yaml"),
		"--plugin-config", filepath.Join(c.dir, "p1/config.yaml")}, c.kubeFlags(a)...), c.etcdFlags()...)
	// Killed when it has begun the first migration; the next run goes on with that, or
	// finds it ended, or nothing stale there any more.
	before := c.killed("re-encrypt: StorageVersionMigration kmsctl-", args...)
	begun := map[string]string{} // its name, by the first word of the resource's
	for _, m := range regexp.MustCompile(`StorageVersionMigration (kmsctl-([a-z]+)\S+) of`).FindAllStringSubmatch(before, -1) {
		begun[m[2]] = m[1]
	}
	out, log := c.kmsctl(0, args...)
	for _, resource := range []string{"secrets", "widgets.example.com"} {
		first, _, _ := strings.Cut(resource, ".")
		if !regexp.MustCompile("StorageVersionMigration of "+regexp.QuoteMeta(resource)+": (Succeeded|an earlier one, kmsctl-.*, has ended: Succeeded)").MatchString(log) && begun[first] == "" {
			t.Errorf("%s were not migrated: %s", resource, log)
		}
		again := regexp.MustCompile("StorageVersionMigration (kmsctl-" + first + "\\S+) of").FindStringSubmatch(log)
		if again != nil && begun[first] != "" && again[1] != begun[first] {
			t.Errorf("%s was begun though %s had been", again[1], begun[first])
		}
	}
	if len(begun) == 0 || !strings.Contains(string(out), "everything is under key_id "+c.keyID(p)) {
		t.Errorf("begun %v: %s%s", begun, log, out)
	}
	if list, err := a.Text(t.Context(), "/apis/storagemigration.k8s.io/v1/storageversionmigrations"); err != nil || strings.Contains(list, "kmsctl-") {
		t.Errorf("migrations are left behind: %s, %v", list, err)
	}
	kvs, err := c.etcd.List(t.Context(), "/registry/events/")
	if err != nil || len(kvs) < n {
		t.Fatalf("%d events, %v", len(kvs), err)
	}
	for _, kv := range kvs {
		if strings.Contains(string(kv.Value), old) {
			t.Errorf("%s is still under the old key_id", kv.Key)
			break
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
