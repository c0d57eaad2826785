//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
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
	out, log := c.kmsctl(0, args...)
	for _, want := range []string{"StorageVersionMigration of secrets: Succeeded", "StorageVersionMigration of widgets.example.com: Succeeded", "everything is under key_id " + c.keyID(p)} {
		if !strings.Contains(string(out)+log, want) {
			t.Errorf("no %q in\n%s%s", want, log, out)
		}
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

// An API server that lives and is not given to rotate run would write under the old key
// for ever: it is named, and nothing is changed.
func TestOverlookedAPIServer(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a1, a2 := c.apiServer("api1", p), c.apiServer("api2", p)
	c.create(a2, "s")
	args := append(append([]string{"rotate", "run", "-n", "default", "--wait", "1s", "--encryption-config", filepath.Join(c.dir, "api1-encryption.yaml")}, c.kubeFlags(a1)...), c.etcdFlags()...)
	_, log := c.kmsctl(1, args...)
	if !strings.Contains(log, `an API server on host "api2" lives`) || !strings.Contains(log, "nothing was changed yet") {
		t.Errorf("%s", log)
	}
}
