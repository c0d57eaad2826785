//go:build e2e

// Package e2e drives real kube-apiservers and a real etcd through kms-plugin.
// It asserts on the bytes in etcd as well as through the API. A reader counts
// only if it reaches the plugin: uncached reads, with restarts in between.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/etcdvalue"
	"kms-plugin.io/test/fakekms"
)

var bin controlplane.Bin

func TestMain(m *testing.M) {
	if os.Getenv(bridgeVariable) != "" {
		os.Exit(standIn(filepath.Base(os.Args[0]), os.Args[1:]))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "kms-e2e-bin")
	if err == nil {
		defer os.RemoveAll(dir)
		bin, err = controlplane.BuildAll(ctx, os.Stderr, dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// cluster is an etcd, a cloud and what stands on them.
type cluster struct {
	t     *testing.T
	dir   string
	etcd  *controlplane.Etcd
	cloud *fakekms.Server
	arn   string
	id    string // clusterID
	// What the configuration of key prod says besides: the endpoint of its region,
	// more of awskms, more of the entry.
	endpoint, aws, entry string
}

func newCluster(t *testing.T) *cluster { return newClusterOf(t, 1) }

// newClusterOf is one with so many members of etcd.
func newClusterOf(t *testing.T, members int) *cluster {
	t.Helper()
	// Short: a socket path has at most 107 bytes.
	dir, err := os.MkdirTemp("", "ke")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cloud, err := fakekms.Start(fakekms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	etcd, err := controlplane.StartEtcds(t.Context(), bin, dir, members)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.KillAll() })
	return &cluster{t: t, dir: dir, etcd: etcd, cloud: cloud, arn: cloud.CreateKey("eu-west-1", fakekms.KeyOptions{}), id: "e2e"}
}

// plugin starts an instance named so; caller is its identity in the cloud.
func (c *cluster) plugin(name, extra string) *controlplane.Plugin {
	c.t.Helper()
	c.cloud.AddPrincipal(name)
	home := filepath.Join(c.dir, name)
	if err := os.MkdirAll(home, 0o700); err != nil {
		c.t.Fatal(err)
	}
	socket, config := filepath.Join(home, "kms.sock"), filepath.Join(home, "config.yaml")
	c.configure(config, home, extra)
	p := controlplane.NewPlugin(bin, home, "plugin", socket, []string{
		"AWS_CONTAINER_CREDENTIALS_FULL_URI=" + c.cloud.CredentialsURL(name), "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
	}, "serve", "--config", config)
	if err := p.Restart(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = p.Kill()
		if c.t.Failed() {
			c.t.Logf("%s:\n%s", name, p.Tail())
		}
	})
	return p
}

func (c *cluster) configure(path, home, extra string) {
	c.t.Helper()
	c.configureKeys(path, home, "write", extra)
}

// configureKeys writes a configuration where key prod has that role.
func (c *cluster) configureKeys(path, home, role, extra string) {
	c.t.Helper()
	endpoint := c.endpoint
	if endpoint == "" {
		endpoint = c.cloud.URL()
	}
	data := fmt.Sprintf(`apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: %s
socket: {path: %s/kms.sock}
stateDir: %s
listenAddress: 127.0.0.1:0
audit: {path: %s/audit.log}
probe: {interval: 500ms}
rotation: {observations: 2, settleTime: 500ms, readableFor: 0s}
reload: {interval: 200ms}
keys:
- name: prod
  role: %s
  awskms: {keyARN: "%s", endpoint: "%s"%s}
%s%s`, c.id, home, home, home, role, c.arn, endpoint, c.aws, c.entry, extra)
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// apiServer starts a kube-apiserver with these plugins as providers.
func (c *cluster) apiServer(name string, plugins ...*controlplane.Plugin) *controlplane.APIServer {
	c.t.Helper()
	return c.apiServerWith(name, nil, plugins...)
}

// apiServerWith has further flags.
func (c *cluster) apiServerWith(name string, flags []string, plugins ...*controlplane.Plugin) *controlplane.APIServer {
	c.t.Helper()
	enc := filepath.Join(c.dir, name+"-encryption.yaml")
	var providers []controlplane.Provider
	for i, p := range plugins {
		providers = append(providers, controlplane.Provider{Name: fmt.Sprintf("kms%d", i+1), Socket: p.Socket})
	}
	if err := controlplane.EncryptionConfig(enc, providers...); err != nil {
		c.t.Fatal(err)
	}
	a, err := controlplane.StartAPIServer(c.t.Context(), bin, c.dir, name, c.etcd, enc, flags...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = a.Kill() })
	return a
}

func (c *cluster) create(a *controlplane.APIServer, name string) controlplane.Secret {
	c.t.Helper()
	s, err := a.CreateSecret(c.t.Context(), name, "value of "+name)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// read demands the Secret, uncached.
func (c *cluster) read(a *controlplane.APIServer, name string) controlplane.Secret {
	c.t.Helper()
	s, err := a.GetSecret(c.t.Context(), name)
	if err != nil {
		c.t.Fatal(err)
	}
	if got := string(s.Data["v"]); got != "value of "+name {
		c.t.Fatalf("Secret %s holds %q", name, got)
	}
	return s
}

func etcdKey(name string) string { return "/registry/secrets/default/" + name }

// stored demands ciphertext in etcd and decodes it.
func (c *cluster) stored(name string) etcdvalue.Object {
	c.t.Helper()
	raw, err := c.etcd.Get(c.t.Context(), etcdKey(name))
	if err != nil {
		c.t.Fatal(err)
	}
	if bytes.Contains(raw, []byte("value of")) {
		c.t.Fatalf("%s is in etcd in plain text", name)
	}
	o, err := etcdvalue.Parse(raw)
	if err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	return o
}

func (c *cluster) restart(what ...interface {
	Stop() error
	Restart(context.Context) error
}) {
	c.t.Helper()
	for i := len(what) - 1; i >= 0; i-- {
		if err := what[i].Stop(); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, w := range what {
		if err := w.Restart(c.t.Context()); err != nil {
			c.t.Fatal(err)
		}
	}
}

// within polls until f is content.
func (c *cluster) within(d time.Duration, what string, f func(ctx context.Context) error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), d)
	defer cancel()
	if err := controlplane.Poll(ctx, 200*time.Millisecond, f); err != nil {
		c.t.Fatalf("%s: not within %s: %v", what, d, err)
	}
}

// healthy polls the API server's own view of the plugin, which also makes it
// call Status sooner than its minute.
func (c *cluster) healthy(a *controlplane.APIServer, d time.Duration) {
	c.t.Helper()
	c.within(d, "healthz/kms-providers", func(ctx context.Context) error {
		_, err := a.Text(ctx, "/healthz/kms-providers")
		return err
	})
}

func (c *cluster) keyID(p *controlplane.Plugin) string {
	c.t.Helper()
	s, err := p.Status(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	if s.Version != "v2" || s.Healthz != "ok" {
		c.t.Fatalf("Status = %v", s)
	}
	return s.KeyId
}

// decrypt opens a stored object by a plugin and the documented algorithm.
func (c *cluster) decrypt(p *controlplane.Plugin, name string) string {
	c.t.Helper()
	o := c.stored(name)
	r, err := p.Decrypt(c.t.Context(), &kmsapi.DecryptRequest{Uid: "e2e", KeyId: o.KeyID, Ciphertext: o.DEKSource, Annotations: o.Annotations})
	if err != nil {
		c.t.Fatal(err)
	}
	plain, err := o.Decrypt(r.Plaintext, etcdKey(name))
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := o.Decrypt(r.Plaintext, etcdKey(name+"x")); err == nil {
		c.t.Error("the payload opens under another etcd key")
	}
	return string(plain)
}

// decrypts counts the Decrypts that reached a plugin since it started.
func (c *cluster) decrypts(p *controlplane.Plugin) (n float64) {
	c.t.Helper()
	text, err := p.Get(c.t.Context(), "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, `kms_plugin_rpc_duration_seconds_count{code="OK",method="Decrypt"}`) {
			if _, err := fmt.Sscanf(line[strings.LastIndexByte(line, ' '):], "%g", &n); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	return n
}
