//go:build e2enode

package e2enode

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/bootstrap"
	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/fakekms"
	"kms-plugin.io/test/node"
)

const (
	configPath    = bootstrap.ConfigPath
	apiServerPath = "/etc/kubernetes/manifests/kube-apiserver.yaml"
	// oldEncryption is where clusters that encrypt already have their
	// EncryptionConfiguration, as docs/install/moving-in.md has it.
	oldEncryption = "/etc/kubernetes/enc/enc.yaml"
)

// cluster is a kubeadm cluster and its cloud. The cloud outlives every node.
type cluster struct {
	owner *testing.T // at its end the cluster goes
	name  string
	cloud *fakekms.Server
	arn   string
	nodes []*node.Node
	api   *controlplane.Client // of the first node
}

// newCluster makes a cloud and a machine, and nothing of Kubernetes yet.
func newCluster(t *testing.T, name string) *cluster {
	t.Helper()
	cloud, err := fakekms.Start(fakekms.Config{Addr: node.Gateway + ":0"})
	if err != nil {
		fail(t, "%v", err)
	}
	t.Cleanup(cloud.Close)
	c := &cluster{owner: t, name: name, cloud: cloud, arn: cloud.CreateKey("eu-west-1", fakekms.KeyOptions{})}
	cloud.SetPolicy(c.arn, fakekms.LeastPrivilege(name))
	c.addNode(t)
	return c
}

// addNode starts a machine that has the images of Kubernetes, its role in the
// cloud, an empty directory for kmsctl init, and nothing else.
func (c *cluster) addNode(t *testing.T) *node.Node {
	t.Helper()
	n, err := lan.NewNode(fmt.Sprintf("%s-%d", c.name, len(c.nodes)+1))
	if err != nil {
		fail(t, "%v", err)
	}
	c.nodes = append(c.nodes, n)
	c.cloud.AddPrincipal(n.Name)
	role := c.cloud.StartIMDS(n.Name, false)
	c.owner.Cleanup(role.Close)
	must(t, imds.add(n, role.URL))
	c.owner.Cleanup(func() {
		if c.owner.Failed() {
			c.explain(c.owner, n)
		}
		if err := n.Kill(); err != nil {
			c.owner.Error(err)
		}
	})
	must(t, n.Boot(t.Context()))
	must(t, n.Import(t.Context(), archive("kubernetes")))
	_, err = n.Run(t.Context(), "mkdir", "-m", "0700", kit)
	must(t, err)
	return n
}

func (c *cluster) explain(t *testing.T, n *node.Node) {
	t.Logf("%s: init\n%s", n.Name, n.Log("init"))
	t.Logf("%s: kubelet\n%s", n.Name, n.Log("kubelet"))
	for _, pod := range []string{"kms-plugin", "kube-apiserver", "etcd"} {
		t.Logf("%s: %s\n%s", n.Name, pod, n.PodLogs(pod))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		fail(t, "%v", err)
	}
}

// connect waits until the first node's API server is ready.
func (c *cluster) connect(t *testing.T) {
	t.Helper()
	api, err := c.nodes[0].Client()
	must(t, err)
	c.api = api
	c.ready(t, api, healTime)
}

// initPlain makes a cluster as kubeadm does without us, and returns how long it took
// until it was ready.
func (c *cluster) initPlain(t *testing.T, o node.Options) time.Duration {
	t.Helper()
	must(t, c.nodes[0].Configure(o))
	begun := time.Now()
	must(t, c.nodes[0].Init(t.Context()))
	c.connect(t)
	return time.Since(begun)
}

// initEncrypted makes a cluster by kmsctl init and docs/install/kubeadm-new.md, and
// returns how long kubeadm took until it was ready.
func (c *cluster) initEncrypted(t *testing.T) time.Duration {
	t.Helper()
	n := c.nodes[0]
	must(t, n.Configure(node.Options{}))
	c.kmsctlInit(t, n, "--kubeadm-config", node.KubeadmPath)
	bring(t, n, imageOf("good"))
	c.follow(t, n, "kubeadm-new", "image")
	c.follow(t, n, made, "image", "plugin", "encryption")
	begun := time.Now()
	c.follow(t, n, "kubeadm-new", "init")
	c.connect(t)
	followed.Store(c.title(made)+"#init", true) // the same block, and a cluster is made once
	return time.Since(begun)
}

func (c *cluster) ready(t *testing.T, api *controlplane.Client, d time.Duration) {
	t.Helper()
	answers(t, api, "/readyz", d)
}

func answers(t *testing.T, api *controlplane.Client, path string, d time.Duration) {
	t.Helper()
	within(t, d, path, func(ctx context.Context) error {
		_, err := api.Text(ctx, path)
		return err
	})
}

// within polls until f is content.
func within(t *testing.T, d time.Duration, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := controlplane.Poll(ctx, 200*time.Millisecond, f); err != nil {
		fail(t, "%s: not within %s: %v", what, d, err)
	}
}

// kmsctl runs on a node, as an operator does, and demands an exit code.
func kmsctl(t *testing.T, n *node.Node, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := n.Command(t.Context(), append([]string{"kmsctl"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fail(t, "%v", err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		fail(t, "kmsctl %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out.Bytes(), errs.Bytes())
	}
	return out.String(), errs.String()
}

// create writes a Secret; read demands it, from etcd.
func create(t *testing.T, api *controlplane.Client, name string) {
	t.Helper()
	_, err := api.CreateSecret(t.Context(), name, "value of "+name)
	must(t, err)
}

func read(t *testing.T, api *controlplane.Client, name string) {
	t.Helper()
	s, err := api.GetSecret(t.Context(), name)
	must(t, err)
	if got := string(s.Data["v"]); got != "value of "+name {
		fail(t, "Secret %s holds %q", name, got)
	}
}
