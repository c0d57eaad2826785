//go:build e2enode

package e2enode

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/fakekms"
	"kms-plugin.io/test/node"
)

const (
	encryptionPath = "/etc/kubernetes/encryption/config.yaml"
	configPath     = "/etc/kms-plugin/config.yaml"
	manifestPath   = "/etc/kubernetes/manifests/kms-plugin.yaml"
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
	cloud, err := fakekms.Start(fakekms.Config{Addr: node.CloudIP + ":0", CredentialsAddr: node.CloudIP + ":0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	c := &cluster{owner: t, name: name, cloud: cloud, arn: cloud.CreateKey("eu-west-1", fakekms.KeyOptions{})}
	c.addNode(t)
	return c
}

// addNode starts a machine that has the images and nothing else.
func (c *cluster) addNode(t *testing.T) *node.Node {
	t.Helper()
	n, err := lan.NewNode(fmt.Sprintf("%s-%d", c.name, len(c.nodes)+1))
	if err != nil {
		t.Fatal(err)
	}
	c.nodes = append(c.nodes, n)
	c.cloud.AddPrincipal(n.Name)
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
	must(t, n.Import(t.Context(), archive("plugin")))
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
		t.Fatal(err)
	}
}

// pluginConfig is the plugin's configuration; the same on every node.
func (c *cluster) pluginConfig() string {
	return fmt.Sprintf(`apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: %s
socket: {path: /run/kms-plugin/kms.sock}
stateDir: /var/lib/kms-plugin
listenAddress: 127.0.0.1:8082
audit: {path: /var/log/kms-plugin/audit.log}
probe: {interval: 1s}
keys:
- name: prod
  role: write
  awskms: {keyARN: "%s", endpoint: "%s"}
`, c.name, c.arn, c.cloud.URL())
}

// manifest is that of deploy/static-pods with image and credentials put in.
func (c *cluster) manifest(t *testing.T, n *node.Node, tag string) string {
	t.Helper()
	data := deployed(t, "kms-plugin.yaml")
	for old, put := range map[string]string{
		"image: kms-plugin.example/kms-plugin:unreleased": "image: " + pluginRepository + tag,
		"imagePullPolicy: IfNotPresent":                   "imagePullPolicy: Never",
		"    args: [serve, --config, /etc/kms-plugin/config.yaml]\n": "    args: [serve, --config, /etc/kms-plugin/config.yaml]\n    env:\n    - {name: AWS_CONTAINER_CREDENTIALS_FULL_URI, value: \"" +
			c.cloud.CredentialsURL(n.Name) + "\"}\n",
	} {
		if !strings.Contains(data, old) {
			t.Fatalf("no %q in the manifest", old)
		}
		data = strings.Replace(data, old, put, 1)
	}
	return data
}

func deployed(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(controlplane.Root(), "deploy/static-pods", name))
	must(t, err)
	return string(data)
}

// install puts the plugin's files on a node; kubelet starts it.
func (c *cluster) install(t *testing.T, n *node.Node) {
	t.Helper()
	must(t, n.Write(configPath, c.pluginConfig()))
	must(t, n.Write(manifestPath, c.manifest(t, n, goodTag)))
}

// withEncryption are kubeadm's options for an API server that encrypts.
func withEncryption() node.Options {
	return node.Options{
		APIServerArgs:   map[string]string{"encryption-provider-config": encryptionPath, "encryption-provider-config-automatic-reload": "true"},
		APIServerMounts: []string{filepath.Dir(encryptionPath), "/run/kms-plugin"},
	}
}

// init makes the cluster and returns how long it took until it was ready.
func (c *cluster) init(t *testing.T, o node.Options) time.Duration {
	t.Helper()
	begun := time.Now()
	must(t, c.nodes[0].Init(t.Context(), o))
	api, err := c.nodes[0].Client()
	must(t, err)
	c.api = api
	c.ready(t, api, time.Minute)
	return time.Since(begun)
}

func (c *cluster) ready(t *testing.T, api *controlplane.Client, d time.Duration) {
	t.Helper()
	within(t, d, "/readyz", func(ctx context.Context) error {
		_, err := api.Text(ctx, "/readyz")
		return err
	})
}

// within polls until f is content.
func within(t *testing.T, d time.Duration, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := controlplane.Poll(ctx, 200*time.Millisecond, f); err != nil {
		t.Fatalf("%s: not within %s: %v", what, d, err)
	}
}

// kmsctl runs on a node, as an operator does, and demands an exit code.
func kmsctl(t *testing.T, n *node.Node, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	cmd := n.Command(t.Context(), append([]string{"kmsctl"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("kmsctl %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out.Bytes(), errs.Bytes())
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
		t.Fatalf("Secret %s holds %q", name, got)
	}
}
