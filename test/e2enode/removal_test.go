//go:build e2enode

package e2enode

import (
	"context"
	"errors"
	"strings"
	"testing"

	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/test/controlplane"
)

// remove follows docs/install/removal.md: back to plain text, and the plugin goes.
func (c *cluster) remove(t *testing.T, apis []*controlplane.Client) {
	t.Helper()
	first := c.nodes[0]
	for _, n := range c.nodes {
		c.follow(t, n, "removal", "plain")
	}
	c.inForce(t, apis, installed(t, first, "encryption/1-read.yaml"))
	c.follow(t, first, "removal", "rewrite", "nothing-left", "kubeadm-config")
	for i, n := range c.nodes {
		c.follow(t, n, "removal", "flags")
		c.withoutEncryption(t, apis[i])
		c.ready(t, apis[i], healTime)
	}
	for _, n := range c.nodes {
		c.follow(t, n, "removal", "plugin")
	}
	create(t, c.api, "in-plain")
	for _, api := range apis {
		read(t, api, "old")
		read(t, api, "in-plain")
	}
	c.plainNow(t)
}

// withoutEncryption waits for the API server that has no EncryptionConfiguration.
func (c *cluster) withoutEncryption(t *testing.T, api *controlplane.Client) {
	t.Helper()
	within(t, healTime, "an API server without encryption at "+api.URL, func(ctx context.Context) error {
		text, err := api.Text(ctx, "/metrics")
		if err == nil && strings.Contains(text, "encryption_config_controller_last_config_info{") {
			err = errors.New("it has one still")
		}
		return err
	})
}

// plainNow looks into etcd: every Secret is in plain text.
func (c *cluster) plainNow(t *testing.T) {
	t.Helper()
	e := dial(t, c.nodes[0])
	defer e.Close()
	seen := 0
	must(t, e.Scan(t.Context(), func(etcdstore.Info) (etcdstore.Visit, error) {
		seen = 0
		return func(kv etcdstore.KV) error {
			if strings.HasPrefix(string(kv.Key), "/registry/secrets/") {
				seen++
				if strings.HasPrefix(string(kv.Value), "k8s:enc:") {
					t.Errorf("%s is encrypted still", kv.Key)
				}
			}
			return nil
		}, nil
	}))
	if seen < 2 {
		t.Errorf("only %d Secrets in etcd", seen)
	}
}
