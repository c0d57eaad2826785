//go:build e2enode

package e2enode

import (
	"encoding/json"
	"strings"
	"testing"

	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/test/etcdvalue"
	"kms-plugin.io/test/node"
)

// A cluster whose plugin and EncryptionConfiguration are there before `kubeadm
// init` has never stored a Secret in plain text. What others go through is beside it.
func TestKubeadm(t *testing.T) {
	plain, c := compare(t)
	aescbc, other := newCluster(t, "aescbc"), newCluster(t, "other")
	create(t, c.api, "first")
	t.Run("clusters", func(t *testing.T) {
		for name, run := range map[string]func(*testing.T){
			"life":       c.live,
			"plain text": plain.thereAndBack,
			"aescbc":     aescbc.fromAESCBC,
			"other":      other.fromOtherKMS,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				run(t)
			})
		}
	})
	if !t.Failed() {
		allFollowed(t, c, plain, aescbc, other)
	}
}

// live is what an encrypted cluster goes through.
func (c *cluster) live(t *testing.T) {
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"encrypted from the first revision", c.encryptedFromTheFirstRevision},
		{"mistakes", c.mistakes},
		{"reboot", c.reboot},
		{"reboot without the cloud", c.rebootWithoutCloud},
		{"reboot without the image", c.rebootWithoutImage},
		{"join", c.join},
		{"upgrade", c.upgrade},
		{"finish", c.finish},
	} {
		if !t.Run(step.name, step.run) {
			return // the cluster is not what the next step expects
		}
	}
}

func (c *cluster) encryptedFromTheFirstRevision(t *testing.T) {
	c.follow(t, c.nodes[0], "kubeadm-new", "prove")
	c.follow(t, c.nodes[0], made, "prove")
	c.confined(t, c.nodes[0])
	seen := map[string]bool{}
	plain := 0
	revisions := history(t, c.nodes[0], func(kv etcdstore.KV) {
		name, ok := strings.CutPrefix(string(kv.Key), "/registry/secrets/")
		if !ok {
			plain++
			return
		}
		o, err := etcdvalue.Parse(kv.Value)
		if err != nil || o.Provider != "kms-plugin" || !strings.HasPrefix(o.KeyID, keyName+":") {
			t.Errorf("%s at revision %d: %v, provider %q, key_id %q", name, kv.ModRevision, err, o.Provider, o.KeyID)
		}
		seen[strings.TrimRight(name, "0123456789abcdefghijklmnopqrstuvwxyz")] = true
	})
	t.Logf("%d revisions, Secrets seen: %v", revisions, seen)
	// kubeadm's own: the token by which a node joins.
	if !seen["kube-system/bootstrap-token-"] || !seen["default/"] {
		t.Errorf("of Secrets only %v were seen", seen)
	}
	if plain == 0 {
		t.Error("nothing else was seen")
	}
}

// confined: what the daemon denies itself is in force in the pod as well, below what
// the kubelet and containerd do.
func (c *cluster) confined(t *testing.T, n *node.Node) {
	t.Helper()
	out, _ := kmsctl(t, n, 0, "status", "--metrics", "127.0.0.1:8082", "-o", "json")
	var report struct {
		Plugin struct{ Hardening map[string]string }
	}
	must(t, json.Unmarshal([]byte(out), &report))
	got := report.Plugin.Hardening
	t.Logf("hardening: %v", got)
	for _, measure := range []string{"dump", "memory", "privileges", "syscalls", "files"} {
		// An older kernel knows less of Landlock; all else is as old as Kubernetes.
		if state := got[measure]; state != "enforced" && (measure != "files" || state != "partial") {
			t.Errorf("hardening in the pod: %s is %q", measure, state)
		}
	}
}

// finish: every API server stops taking plain text for true.
func (c *cluster) finish(t *testing.T) {
	for _, n := range c.nodes {
		c.follow(t, n, made, "finish")
	}
	apis := c.clients(t)
	c.inForce(t, apis, installed(t, c.nodes[0], "encryption/3-finish.yaml"))
	for _, api := range apis {
		read(t, api, "first")
	}
}

// history visits every revision that etcd ever had, and returns how many.
func history(t *testing.T, n *node.Node, visit func(etcdstore.KV)) int64 {
	t.Helper()
	e := dial(t, n)
	defer e.Close()
	var revision int64
	must(t, e.History().Scan(t.Context(), func(i etcdstore.Info) (etcdstore.Visit, error) {
		if i.Compacted != 1 {
			fail(t, "etcd has forgotten what was before revision %d", i.Compacted)
		}
		revision = i.Revision
		return func(kv etcdstore.KV) error { visit(kv); return nil }, nil
	}))
	return revision
}

func dial(t *testing.T, n *node.Node) *live.Etcd {
	t.Helper()
	pki := n.Path("/etc/kubernetes/pki/etcd/")
	e, err := live.Dial(t.Context(), live.Config{Endpoints: []string{"https://" + n.IP + ":2379"}, CA: pki + "/ca.crt", Cert: pki + "/healthcheck-client.crt", Key: pki + "/healthcheck-client.key"})
	must(t, err)
	return e
}
