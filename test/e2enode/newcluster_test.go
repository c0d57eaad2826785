//go:build e2enode

package e2enode

import (
	"strings"
	"testing"

	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/test/etcdvalue"
	"kms-plugin.io/test/node"
)

// A cluster whose plugin and EncryptionConfiguration are there before `kubeadm
// init` has never stored a Secret in plain text. The same without them beside it.
func TestKubeadm(t *testing.T) {
	plain := newCluster(t, "plain")
	without := plain.init(t, node.Options{})
	c := newCluster(t, "kms")
	first := c.nodes[0]
	must(t, first.Write(encryptionPath, deployed(t, "encryption-configuration.yaml")))
	c.install(t, first)
	with := c.init(t, withEncryption())
	t.Logf("kubeadm init to ready: %.1f s with kms-plugin, %.1f s without, ratio %.2f", with.Seconds(), without.Seconds(), with.Seconds()/without.Seconds())
	create(t, c.api, "first")
	t.Run("life", func(t *testing.T) {
		t.Parallel()
		c.live(t)
	})
	t.Run("plain text", func(t *testing.T) {
		t.Parallel()
		plain.switchOn(t)
	})
	t.Run("aescbc", func(t *testing.T) {
		t.Parallel()
		aescbcCluster(t).fromAESCBC(t)
	})
}

// live is what an encrypted cluster goes through.
func (c *cluster) live(t *testing.T) {
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"encrypted from the first revision", c.encryptedFromTheFirstRevision},
		{"reboot", c.reboot},
		{"reboot without the cloud", c.rebootWithoutCloud},
		{"reboot without the image", c.rebootWithoutImage},
		{"join", c.join},
		{"upgrade", c.upgrade},
	} {
		if !t.Run(step.name, step.run) {
			return // the cluster is not what the next step expects
		}
	}
}

func (c *cluster) encryptedFromTheFirstRevision(t *testing.T) {
	out, _ := kmsctl(t, c.nodes[0], 0, "coverage", "--encryption-config", encryptionPath, "--plugin-config", configPath, "--require", "no-plaintext")
	t.Logf("kmsctl coverage:\n%s", out)
	seen := map[string]bool{}
	plain := 0
	revisions := history(t, c.nodes[0], func(kv etcdstore.KV) {
		name, ok := strings.CutPrefix(string(kv.Key), "/registry/secrets/")
		if !ok {
			plain++
			return
		}
		o, err := etcdvalue.Parse(kv.Value)
		if err != nil || o.Provider != "kms-plugin" || !strings.HasPrefix(o.KeyID, "prod:") {
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

// history visits every revision that etcd ever had, and returns how many.
func history(t *testing.T, n *node.Node, visit func(etcdstore.KV)) int64 {
	t.Helper()
	pki := n.Path("/etc/kubernetes/pki/etcd/")
	e, err := live.Dial(t.Context(), live.Config{Endpoints: []string{"https://" + n.IP + ":2379"}, CA: pki + "/ca.crt", Cert: pki + "/healthcheck-client.crt", Key: pki + "/healthcheck-client.key"})
	must(t, err)
	defer e.Close()
	var revision int64
	must(t, e.History().Scan(t.Context(), func(i etcdstore.Info) (etcdstore.Visit, error) {
		if i.Compacted != 1 {
			t.Fatalf("etcd has forgotten what was before revision %d", i.Compacted)
		}
		revision = i.Revision
		return func(kv etcdstore.KV) error { visit(kv); return nil }, nil
	}))
	return revision
}
