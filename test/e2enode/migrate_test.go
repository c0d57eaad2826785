//go:build e2enode

package e2enode

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
)

const (
	kms      = "  - kms: {apiVersion: v2, name: kms-plugin, endpoint: \"unix:///run/kms-plugin/kms.sock\", timeout: 3s}\n"
	aescbc   = "  - aescbc: {keys: [{name: old, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}\n"
	identity = "  - identity: {}\n"
)

// encryption is an EncryptionConfiguration for Secrets with these providers.
func encryption(providers ...string) string {
	return "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n" + strings.Join(providers, "")
}

// switchOn takes a running cluster of two nodes from plain text to the plugin.
func (c *cluster) switchOn(t *testing.T) {
	create(t, c.api, "old")
	c.second(t)
	apis := c.clients(t)
	b := watch(t, "switch-on", apis...)
	c.moveIn(t, b, apis, identity)
	out, _ := kmsctl(t, c.nodes[0], 0, "coverage", "--encryption-config", encryptionPath, "--plugin-config", configPath, "--require", "no-plaintext")
	t.Logf("kmsctl coverage:\n%s", out)
	b.check(t)
	for _, api := range apis {
		read(t, api, "old")
	}
}

// fromAESCBC takes a cluster from a key in a file to the plugin, and drops the key.
func (c *cluster) fromAESCBC(t *testing.T) {
	create(t, c.api, "old")
	apis := c.clients(t)
	b := watch(t, "aescbc", apis...)
	c.moveIn(t, b, apis, aescbc)
	c.reload(t, apis, encryption(kms))
	out, _ := kmsctl(t, c.nodes[0], 0, "coverage", "--encryption-config", encryptionPath, "--plugin-config", configPath, "--require", "no-plaintext")
	t.Logf("kmsctl coverage:\n%s", out)
	b.check(t)
	for _, api := range apis {
		read(t, api, "old")
	}
}

// moveIn adds the plugin as a provider that is read by all before any writes with
// it, then makes it write, and has everything written again. The first step starts
// each API server anew, one after the other: it must see the socket's directory.
func (c *cluster) moveIn(t *testing.T, b *bystander, apis []*controlplane.Client, old string) {
	t.Helper()
	for i, n := range c.nodes {
		c.install(t, n)
		must(t, n.Write(encryptionPath, encryption(old, kms)))
		b.pause(apis[i])
		must(t, n.Reconfigure(t.Context(), c.nodes[0], withEncryption()))
		c.inForce(t, apis[i:i+1], encryption(old, kms))
		c.ready(t, apis[i], healTime)
		b.resume(apis[i])
	}
	c.reload(t, apis, encryption(kms, old))
	out, errs := kmsctl(t, c.nodes[0], 0, "rotate", "run", "--kubeconfig", "/etc/kubernetes/admin.conf", "--encryption-config", encryptionPath, "--plugin-config", configPath)
	t.Logf("kmsctl rotate run:\n%s%s", errs, out)
}

// reload writes the EncryptionConfiguration of all nodes and waits until it is in
// force on all: the API servers look once a minute.
func (c *cluster) reload(t *testing.T, apis []*controlplane.Client, config string) {
	t.Helper()
	for _, n := range c.nodes {
		must(t, n.Write(encryptionPath, config))
	}
	c.inForce(t, apis, config)
}

func (c *cluster) inForce(t *testing.T, apis []*controlplane.Client, config string) {
	t.Helper()
	want := fmt.Sprintf(`hash="sha256:%x"`, sha256.Sum256([]byte(config)))
	for _, api := range apis {
		within(t, healTime, "EncryptionConfiguration in force at "+api.URL, func(ctx context.Context) error {
			text, err := api.Text(ctx, "/metrics")
			if err == nil && !strings.Contains(text, want) {
				err = errors.New("another one is in force")
			}
			return err
		})
	}
}

// clients are one of each node's API server.
func (c *cluster) clients(t *testing.T) (out []*controlplane.Client) {
	t.Helper()
	for _, n := range c.nodes {
		api, err := n.Client()
		must(t, err)
		out = append(out, api)
	}
	return out
}

// aescbcCluster is one that encrypts with a key in a file.
func aescbcCluster(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t, "aescbc")
	must(t, c.nodes[0].Write(encryptionPath, encryption(aescbc)))
	o := withEncryption()
	o.APIServerMounts = o.APIServerMounts[:1] // it knows nothing of a socket
	d := c.init(t, o)
	t.Logf("kubeadm init to ready with aescbc: %.1f s", d.Seconds())
	return c
}

// second adds a control plane to a cluster without the plugin.
func (c *cluster) second(t *testing.T) {
	t.Helper()
	n := c.addNode(t)
	must(t, n.Join(t.Context(), c.nodes[0]))
	api, err := n.Client()
	must(t, err)
	c.ready(t, api, healTime)
}

const moment = 20 * time.Millisecond

// tick is content at its tenth call.
func tick() func(context.Context) error {
	n := 0
	return func(context.Context) error {
		if n++; n < 10 {
			return errors.New("wait")
		}
		return nil
	}
}
