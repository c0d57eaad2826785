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
// does not start, and takes it back. No request of anybody fails.
func (c *cluster) upgrade(t *testing.T) {
	for _, n := range c.nodes {
		must(t, n.Import(t.Context(), archive("upgrades")))
	}
	apis := c.clients(t)
	b := watch(t, "upgrade", apis...)
	for i, n := range c.nodes {
		begun := time.Now()
		must(t, n.Write(manifestPath, c.manifest(t, n, nextTag)))
		c.runs(t, n, nextTag)
		c.ready(t, apis[i], healTime)
		t.Logf("%s: upgraded and ready in %.1f s", n.Name, time.Since(begun).Seconds())
	}
	first := c.nodes[0]
	begun := time.Now()
	must(t, first.Write(manifestPath, c.manifest(t, first, badTag)))
	within(t, healTime, "kubelet says that the new version does not start", func(ctx context.Context) error {
		p, err := pluginStatus(ctx, c, first)
		if err != nil {
			return err
		}
		if p.State.Running != nil || p.RestartCount == 0 || p.Image != pluginRepository+badTag {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
	t.Logf("kubelet on the bad version after %.1f s: %+v", time.Since(begun).Seconds(), pluginOf(t, c, first).State.Waiting)
	must(t, first.Write(manifestPath, c.manifest(t, first, nextTag)))
	c.runs(t, first, nextTag)
	c.ready(t, apis[0], healTime)
	t.Logf("rolled back and ready %.1f s after the bad version", time.Since(begun).Seconds())
	b.check(t)
}

// runs waits until kubelet says that this version runs and is ready.
func (c *cluster) runs(t *testing.T, n *node.Node, tag string) {
	t.Helper()
	within(t, healTime, "version "+tag+" runs on "+n.Name, func(ctx context.Context) error {
		p, err := pluginStatus(ctx, c, n)
		if err != nil {
			return err
		}
		if p.State.Running == nil || !p.Ready || p.Image != pluginRepository+tag {
			return fmt.Errorf("%+v", p)
		}
		return nil
	})
}
