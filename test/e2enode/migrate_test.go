//go:build e2enode

package e2enode

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/node"
)

// encryption is an EncryptionConfiguration for Secrets with this provider alone.
func encryption(provider string) string {
	return "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n" + provider
}

// thereAndBack takes a running cluster of two nodes from plain text to the plugin,
// and back again.
func (c *cluster) thereAndBack(t *testing.T) {
	create(t, c.api, "old")
	c.second(t)
	apis := c.clients(t)
	b := watch(t, "switch-on", apis...)
	c.moveIn(t, b, apis, "--existing-cluster")
	b.check(t)
	for _, api := range apis {
		read(t, api, "old")
	}
	c.remove(t, apis)
}

// fromAESCBC takes a cluster from a key in a file to the plugin, and drops the key.
func (c *cluster) fromAESCBC(t *testing.T) {
	c.initEncryptedBy(t, "  - aescbc: {keys: [{name: old, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}\n")
	c.moveFrom(t)
}

// initEncryptedBy makes a cluster that encrypts with another provider. Its API
// server sees the directories of the socket too, if there is one.
func (c *cluster) initEncryptedBy(t *testing.T, provider string, sockets ...string) {
	t.Helper()
	must(t, c.nodes[0].Write(oldEncryption, encryption(provider)))
	o := node.Options{APIServerArgs: map[string]string{"encryption-provider-config": oldEncryption}, APIServerMounts: append(sockets, path.Dir(oldEncryption))}
	t.Logf("kubeadm init to ready: %.1f s", c.initPlain(t, o).Seconds())
	create(t, c.api, "old")
}

// moveFrom moves in from the provider in force, and drops it.
func (c *cluster) moveFrom(t *testing.T) {
	t.Helper()
	apis := c.clients(t)
	b := watch(t, c.name, apis...)
	c.moveIn(t, b, apis, "--from", oldEncryption)
	c.follow(t, c.nodes[0], "moving-in", "old-gone")
	for _, n := range c.nodes {
		c.follow(t, n, made, "finish")
	}
	c.inForce(t, apis, installed(t, c.nodes[0], "encryption/3-finish.yaml"))
	b.check(t)
	for _, api := range apis {
		read(t, api, "old")
	}
}

// moveIn follows docs/install/kubeadm-existing.md and the README that is made: the
// plugin becomes a provider that is read by all before any writes with it, then it
// writes, and everything is written again. The first step starts each API server
// anew, one after the other: it must see the socket's directory.
func (c *cluster) moveIn(t *testing.T, b *bystander, apis []*controlplane.Client, flags ...string) {
	t.Helper()
	first := c.nodes[0]
	c.follow(t, first, "kubeadm-existing", "fetch")
	c.kmsctlInit(t, first, append(flags, "--kubeadm-config", kit+"/cluster-configuration.yaml")...)
	bring(t, first, imageOf("good"))
	for i, n := range c.nodes {
		if i > 0 {
			copyKit(t, first, n)
		}
		c.follow(t, n, made, "image", "plugin", "wait")
	}
	for i, n := range c.nodes {
		b.pause(apis[i])
		c.follow(t, n, made, "read", "manifest")
		c.inForce(t, apis[i:i+1], installed(t, n, "encryption/1-read.yaml"))
		c.ready(t, apis[i], healTime)
		c.follow(t, n, made, "ready")
		b.resume(apis[i])
	}
	c.follow(t, first, made, "kubeadm-config")
	for _, n := range c.nodes {
		c.follow(t, n, made, "write")
	}
	c.inForce(t, apis, installed(t, first, "encryption/2-write.yaml"))
	c.follow(t, first, made, "rotate", "prove")
}

// inForce waits until these API servers have an EncryptionConfiguration: they look
// once a minute.
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
