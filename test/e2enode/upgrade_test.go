//go:build e2enode

package e2enode

import (
	"context"
	"fmt"
	"testing"
	"time"

	"kms-plugin.io/test/node"
)

// upgrade replaces the plugin on node after node, then puts a version on one that
// does not start, and takes it back, by docs/install/upgrade.md. No request of
// anybody fails.
func (c *cluster) upgrade(t *testing.T) {
	first := c.nodes[0]
	apis := c.clients(t)
	b := watch(t, "upgrade", apis...)
	for i, n := range c.nodes {
		must(t, n.Import(t.Context(), imageOf("next")))
		begun := time.Now()
		c.change(t, n, nextImage)
		c.runs(t, n, nextImage)
		c.ready(t, apis[i], healTime)
		t.Logf("%s: upgraded and ready in %.1f s", n.Name, time.Since(begun).Seconds())
	}
	must(t, first.Import(t.Context(), archive("bad")))
	begun := time.Now()
	c.change(t, first, badImage)
	within(t, healTime, "kubelet says that the new version does not start", func(ctx context.Context) error {
		p, err := pluginStatus(ctx, c, first)
		if err != nil {
			return err
		}
		if p.State.Running != nil || p.RestartCount == 0 || p.Image != badImage {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	t.Logf("kubelet on the bad version after %.1f s: %+v", time.Since(begun).Seconds(), pluginOf(t, c, first).State.Waiting)
	c.follow(t, first, "upgrade", "rollback")
	c.runs(t, first, nextImage)
	c.ready(t, apis[0], healTime)
	t.Logf("rolled back and ready %.1f s after the bad version", time.Since(begun).Seconds())
	b.check(t)
}

// change puts another version of the plugin on a node.
func (c *cluster) change(t *testing.T, n *node.Node, image string) {
	t.Helper()
	first := c.nodes[0]
	c.kmsctlInit(t, first, "--image", image, "--kubeadm-config", node.KubeadmPath, "--force")
	if n != first {
		copyKit(t, first, n)
	}
	c.follow(t, n, "upgrade", "upgrade")
}

// runs waits until kubelet says that this version runs and is ready.
func (c *cluster) runs(t *testing.T, n *node.Node, image string) {
	t.Helper()
	within(t, healTime, image+" runs on "+n.Name, func(ctx context.Context) error {
		p, err := pluginStatus(ctx, c, n)
		if err != nil {
			return err
		}
		if p.State.Running == nil || !p.Ready || p.Image != image {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
}
