//go:build e2e

package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
)

// sibling is another cluster under the same KEK in the same cloud. Nothing in the
// fake's key policy keeps the two apart. Without an etcd it has one of its own.
func (c *cluster) sibling(id string, etcd *controlplane.Etcd) *cluster {
	c.t.Helper()
	dir, err := os.MkdirTemp("", "ks")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { os.RemoveAll(dir) })
	if etcd == nil {
		if etcd, err = controlplane.StartEtcd(c.t.Context(), bin, dir); err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { _ = etcd.Kill() })
	}
	return &cluster{t: c.t, dir: dir, etcd: etcd, cloud: c.cloud, arn: c.arn, id: id}
}

// refuses demands that a Secret cannot be read, because of its cluster.
func (c *cluster) refuses(a *controlplane.APIServer, name string) {
	c.t.Helper()
	if s, err := a.GetSecret(c.t.Context(), name); err == nil {
		c.t.Fatalf("Secret %s of another cluster opens: %d bytes", name, len(s.Data["v"]))
	} else if !strings.Contains(err.Error(), "cluster") {
		c.t.Errorf("reading %s fails with %v, which does not name the cause", name, err)
	}
}

// What cluster A stored never opens with cluster B's identity, even under one KEK: put
// into B's etcd at the same place, by who may write there.
func TestSwappedBetweenClusters(t *testing.T) {
	a := newCluster(t)
	b := a.sibling("other", nil)
	pa, pb := a.plugin("pa", ""), b.plugin("pb", "")
	apiA, apiB := a.apiServer("apia", pa), b.apiServer("apib", pb)
	for _, name := range []string{"swapped", "left"} {
		a.create(apiA, name)
		b.create(apiB, name)
	}
	valueA, err := a.etcd.Get(t.Context(), etcdKey("swapped"))
	valueB, errB := b.etcd.Get(t.Context(), etcdKey("swapped"))
	if err = errors.Join(err, errB); err != nil {
		t.Fatal(err)
	}
	for c, value := range map[*cluster][]byte{a: valueB, b: valueA} {
		if _, err := c.etcd.Put(t.Context(), etcdKey("swapped"), value); err != nil {
			t.Fatal(err)
		}
	}
	for _, api := range []*controlplane.APIServer{apiA, apiB} { // neither a cached seed nor a watch cache helps
		if err := errors.Join(api.Stop(), api.RestartUnready(t.Context())); err != nil { // its Secrets never list
			t.Fatal(err)
		}
	}
	a.refuses(apiA, "swapped")
	b.refuses(apiB, "swapped")
	a.read(apiA, "left")
	b.read(apiB, "left")
	// Back in its own place it opens.
	if _, err := a.etcd.Put(t.Context(), etcdKey("swapped"), valueA); err != nil {
		t.Fatal(err)
	}
	a.read(apiA, "swapped")
}

// docs/runbooks/restore.md: a backup opens under another clusterID only by a plugin
// that is given the old one, alone or beside a new one.
func TestRestoreUnderAnotherClusterID(t *testing.T) {
	old := newCluster(t)
	p := old.plugin("p1", "")
	api := old.apiServer("api", p)
	old.create(api, "kept")
	file := filepath.Join(old.dir, "backup.db")
	if out, err := exec.CommandContext(t.Context(), bin.Etcdctl, "--endpoints", old.etcd.URL, "snapshot", "save", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := errors.Join(api.Kill(), p.Kill(), old.etcd.Kill()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	etcd, err := controlplane.RestoreEtcd(t.Context(), bin, dir, file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Kill() })

	renamed := old.sibling("renamed", etcd)
	pNew := renamed.plugin("new", "")
	if out, err := renamed.drill(pNew, file); err == nil || !strings.Contains(out, "cluster") {
		t.Errorf("a drill under another clusterID: %v\n%s", err, out)
	}
	same := old.sibling("e2e", etcd)
	pOld := same.plugin("old", "")
	if out, err := same.drill(pOld, file); err != nil {
		t.Fatalf("a drill under the old clusterID: %v\n%s", err, out)
	}

	// Both: the new one writes, the old one opens what there was, under its old name.
	enc := filepath.Join(dir, "both.yaml")
	if err := controlplane.EncryptionConfig(enc, controlplane.Provider{Name: "kms-new", Socket: pNew.Socket}, controlplane.Provider{Name: "kms1", Socket: pOld.Socket}); err != nil {
		t.Fatal(err)
	}
	both, err := controlplane.StartAPIServer(t.Context(), bin, renamed.dir, "both", etcd, enc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = both.Kill() })
	s := renamed.read(both, "kept")
	renamed.within(60*time.Second, "written again under the new clusterID", func(ctx context.Context) error {
		if _, err := both.UpdateSecret(ctx, s); err != nil {
			return err
		}
		if got := renamed.stored("kept").Provider; got != "kms-new" {
			return errors.New("still under provider " + got)
		}
		return nil
	})
	if err := errors.Join(pOld.Kill(), controlplane.EncryptionConfig(enc, controlplane.Provider{Name: "kms-new", Socket: pNew.Socket})); err != nil {
		t.Fatal(err)
	}
	renamed.restart(both)
	renamed.read(both, "kept")
}

// drill runs kmsctl drill of a file against a plugin.
func (c *cluster) drill(p *controlplane.Plugin, file string) (string, error) {
	out, err := exec.CommandContext(c.t.Context(), bin.Kmsctl, "drill", "--snapshot", file, "--socket", p.Socket).CombinedOutput()
	return string(out), err
}
