//go:build e2enode

package e2enode

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/node"
)

const (
	kit     = "/opt/kms" // on a node: the directory that kmsctl init makes
	keyName = "kek-1"    // its default
	// made is the README in it, among the pages of docs/install.
	made      = "README"
	blockTime = 10 * time.Minute
)

var named = regexp.MustCompile("(?ms)^<!-- run: ([a-z-]+) -->\n```sh\n(.*?)^```")

// pages are those whose every block must be run here.
var pages = []string{"kubeadm-new", "kubeadm-existing", "moving-in", "nodes", "upgrade", "removal"}

// kmsctlInit makes the files of kmsctl init on a node, in kit, where the archive of
// `make image` is too.
func (c *cluster) kmsctlInit(t *testing.T, n *node.Node, more ...string) {
	t.Helper()
	out, _ := kmsctl(t, n, 0, append([]string{"init", "--cluster-id", c.name, "--key-arn", c.arn, "--endpoint", c.cloud.URL(),
		"--node-role", "arn:aws:iam::111122223333:role/control-plane", "--dir", kit}, more...)...)
	t.Logf("kmsctl init:\n%s", out)
}

// bring puts a file of this machine into kit, under its own name.
func bring(t *testing.T, n *node.Node, file string) {
	t.Helper()
	_, err := n.Run(t.Context(), "cp", file, kit+"/")
	must(t, err)
}

// copyKit brings all of kit from one node to another, as scp does.
func copyKit(t *testing.T, from, to *node.Node) {
	t.Helper()
	var tar, errs bytes.Buffer
	send := from.Command(t.Context(), "tar", "-C", kit, "-cf", "-", ".")
	send.Stdout, send.Stderr = &tar, &errs
	if err := send.Run(); err != nil {
		fail(t, "tar: %v: %s", err, &errs)
	}
	take := to.Command(t.Context(), "tar", "-C", kit, "-xf", "-")
	take.Stdin = &tar
	if out, err := take.CombinedOutput(); err != nil {
		fail(t, "tar: %v: %s", err, out)
	}
}

// blocks are the commands of a page by their names; made is the README of this
// cluster.
func (c *cluster) blocks(t *testing.T, page string) map[string]string {
	t.Helper()
	var text string
	if page == made {
		text = installed(t, c.nodes[0], "README.md")
	} else {
		data, err := os.ReadFile(filepath.Join(controlplane.Root(), "docs/install", page+".md"))
		must(t, err)
		text = string(data)
	}
	out := map[string]string{}
	for _, m := range named.FindAllStringSubmatch(text, -1) {
		out[m[1]] = m[2]
	}
	return out
}

// followed are the blocks that ran: page#name, or README of cluster#name, and their
// text, since the READMEs of two clusters share most of theirs.
var followed sync.Map

func (c *cluster) title(page string) string {
	if page == made {
		return made + " of " + c.name
	}
	return page
}

// follow runs blocks of a page on a node as they stand there, as docs/install says
// that they are to be run.
func (c *cluster) follow(t *testing.T, n *node.Node, page string, names ...string) {
	t.Helper()
	blocks := c.blocks(t, page)
	for _, name := range names {
		text, ok := blocks[name]
		if !ok {
			fail(t, "%s has no block %q", c.title(page), name)
		}
		ctx, cancel := context.WithTimeout(t.Context(), blockTime)
		out, err := n.Run(ctx, "bash", "-ec", "cd "+kit+"\n"+text)
		cancel()
		t.Logf("%s: %s, block %s:\n%s%s", n.Name, c.title(page), name, text, out)
		must(t, err)
		followed.Store(c.title(page)+"#"+name, true)
		followed.Store(text, true)
	}
}

// allFollowed demands that no block was left out, of the pages and of the READMEs of
// these clusters.
func allFollowed(t *testing.T, clusters ...*cluster) {
	t.Helper()
	demand := func(c *cluster, page string) {
		blocks := c.blocks(t, page)
		for name, text := range blocks {
			_, here := followed.Load(c.title(page) + "#" + name)
			if _, elsewhere := followed.Load(text); !here && !elsewhere {
				t.Errorf("%s: block %q was not run", c.title(page), name)
			}
		}
		if len(blocks) == 0 {
			t.Errorf("%s has no blocks", c.title(page))
		}
	}
	for _, page := range pages {
		demand(clusters[0], page)
	}
	for _, c := range clusters {
		demand(c, made)
	}
}

// installed is a file of kit, as it was brought to the node.
func installed(t *testing.T, n *node.Node, name string) string {
	t.Helper()
	out, err := n.Run(t.Context(), "cat", kit+"/"+name)
	must(t, err)
	return out
}
