// Package apiserver drives kms-plugin with the very code by which kube-apiserver
// 1.37 does: it loads an EncryptionConfiguration and transforms values. It is a
// module of its own, so that none of that code comes near the daemon.
package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"

	"kms-plugin.io/internal/daemon"
	"kms-plugin.io/test/fakekms"
)

// cloud is one for all tests; each makes a key of its own.
var cloud *fakekms.Server

func TestMain(m *testing.M) {
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "AWS_") {
			os.Unsetenv(name)
		}
	}
	var err error
	if cloud, err = fakekms.Start(fakekms.Config{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", cloud.CredentialsURL("default"))
	os.Setenv("AWS_CONFIG_FILE", "/dev/null")
	os.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	code := m.Run()
	cloud.Close()
	os.Exit(code)
}

// plugin is a daemon in this process.
type plugin struct {
	t                   *testing.T
	dir, socket, config string
	cancel              context.CancelFunc
	done                chan error
}

// newPlugin prepares a daemon for a key; start runs it.
func newPlugin(t *testing.T, arn string) *plugin {
	t.Helper()
	dir, err := os.MkdirTemp("", "kp")
	if err != nil {
		t.Fatal(err)
	}
	p := &plugin{t: t, dir: dir, socket: filepath.Join(dir, "kms.sock"), config: filepath.Join(dir, "config.yaml")}
	p.configure(arn, "")
	t.Cleanup(func() {
		p.stop()
		os.RemoveAll(dir)
	})
	return p
}

func (p *plugin) configure(arn, extra string) {
	p.t.Helper()
	err := os.WriteFile(p.config, fmt.Appendf(nil, `apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: t1
socket: {path: %s}
stateDir: %s
listenAddress: ""
probe: {interval: 200ms}
rotation: {observations: 2, settleTime: 0s, readableFor: 0s}
keys:
- name: prod
  role: write
  awskms: {keyARN: "%s", endpoint: "%s"}
%s`, p.socket, p.dir, arn, cloud.URL(), extra), 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *plugin) start() {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan error, 1)
	go func() {
		p.done <- daemon.Run(ctx, daemon.Options{Source: daemon.Source{Path: p.config}, Log: io.Discard})
	}()
	eventually(p.t, 10*time.Second, "the socket", func() error {
		select {
		case err := <-p.done:
			p.t.Fatalf("daemon ended: %v", err)
		default:
		}
		_, err := os.Stat(p.socket)
		return err
	})
}

func (p *plugin) stop() {
	if p.cancel == nil {
		return
	}
	p.cancel()
	p.cancel = nil
	if err := <-p.done; err != nil {
		p.t.Errorf("daemon: %v", err)
	}
}

func eventually(t *testing.T, d time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, d, err)
		}
		<-tick.C
	}
}

// server is what one kube-apiserver has of a provider.
type server struct {
	t      *testing.T
	config *encryptionconfig.EncryptionConfiguration
	value.Transformer
}

// load is a start, or a reload, of an API server: fresh caches, a new seed.
func load(t *testing.T, name string, sockets ...string) *server {
	t.Helper()
	path := filepath.Join(t.TempDir(), "encryption.yaml")
	var b bytes.Buffer
	b.WriteString("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n")
	for i, s := range sockets {
		fmt.Fprintf(&b, "  - kms: {apiVersion: v2, name: %s-%d, endpoint: \"unix://%s\", timeout: 3s}\n", name, i, s)
	}
	b.WriteString("  - identity: {}\n")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	c, err := encryptionconfig.LoadEncryptionConfig(ctx, path, true, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	return &server{t, c, c.Transformers[schema.GroupResource{Resource: "secrets"}]}
}

func (s *server) healthy() error {
	return s.config.HealthChecks[0].Check(httptest.NewRequest("GET", "/healthz", nil))
}

var object = value.DefaultContext("/registry/secrets/default/s")

const plain = "k8s plain value"

func (s *server) write() []byte {
	s.t.Helper()
	out, err := s.TransformToStorage(context.Background(), []byte(plain), object)
	if err != nil {
		s.t.Fatalf("write: %v", err)
	}
	if bytes.Contains(out, []byte(plain)) {
		s.t.Fatal("written in plain text")
	}
	return out
}

func (s *server) tryRead(stored []byte) (stale bool, err error) {
	got, stale, err := s.TransformFromStorage(context.Background(), stored, object)
	if err == nil && string(got) != plain {
		err = fmt.Errorf("read %q", got)
	}
	return stale, err
}

func (s *server) read(stored []byte) (stale bool) {
	s.t.Helper()
	stale, err := s.tryRead(stored)
	if err != nil {
		s.t.Fatalf("read: %v", err)
	}
	return stale
}
