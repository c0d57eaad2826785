//go:build e2e

package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/etcdvalue"
	"kms-plugin.io/test/fakekms"
)

// stage is one cluster on which many faults are tried, one after the other: an etcd
// and some API servers with a plugin each. What happens to one node happens to the first.
type stage struct {
	t     *testing.T // of what the stage lives in
	dir   string
	cloud *fakekms.Server
	etcd  *controlplane.Etcd
	arn   string
	aws   string            // more of awskms
	more  string            // more of the configuration
	away  []*fakekms.Region // endpoints of regions, the first region first
	url   string            // of the KMS

	p    []*controlplane.Plugin
	a    []*controlplane.APIServer
	conn []*grpc.ClientConn // to each plugin, as its API server has it
	down []atomic.Bool      // API server is stopped on purpose
	dead []atomic.Bool      // plugin is stopped on purpose
}

// newStage has so many nodes. A key of two regions is asked at an endpoint each.
func newStage(t *testing.T, nodes, regions int, more string) *stage {
	t.Helper()
	s := emptyStage(t, nodes)
	s.more = more
	if regions > 1 {
		s.twoRegions()
	}
	for i := range nodes {
		s.addPlugin(i)
	}
	for i, p := range s.p {
		enc := filepath.Join(s.dir, fmt.Sprintf("api%d-encryption.yaml", i+1))
		if err := controlplane.EncryptionConfig(enc, controlplane.Provider{Name: "kms1", Socket: p.Socket}); err != nil {
			t.Fatal(err)
		}
		a, err := controlplane.StartAPIServer(t.Context(), bin, s.dir, fmt.Sprintf("api%d", i+1), s.etcd, enc)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = a.Kill() })
		s.a = append(s.a, a)
	}
	return s
}

// emptyStage is a cloud and an etcd.
func emptyStage(t *testing.T, nodes int) *stage {
	t.Helper()
	dir, err := os.MkdirTemp("", "kc") // short: a socket path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cloud, err := fakekms.Start(fakekms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	etcd, err := controlplane.StartEtcd(t.Context(), bin, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.KillAll() })
	s := &stage{t: t, dir: dir, cloud: cloud, etcd: etcd, arn: cloud.CreateKey("eu-west-1", fakekms.KeyOptions{}), url: cloud.URL(),
		down: make([]atomic.Bool, nodes), dead: make([]atomic.Bool, nodes)}
	if u, err := url.Parse(s.url); err == nil && apart() {
		s.url = "http://" + kmsName + ":" + u.Port()
	}
	return s
}

func (s *stage) twoRegions() {
	s.t.Helper()
	for _, name := range []string{"eu-west-1", "us-east-1"} {
		r, err := s.cloud.Region(name)
		if err != nil {
			s.t.Fatal(err)
		}
		s.away = append(s.away, r)
	}
	s.arn = s.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{MultiRegion: true, Replicas: []string{"us-east-1"}})
	s.url = s.away[0].URL()
	s.aws = fmt.Sprintf(`, replicas: ["%s"], replicaEndpoints: {us-east-1: "%s"}`, s.cloud.ReplicaARN(s.arn, "us-east-1"), s.away[1].URL())
}

// home is a file of one node.
func (s *stage) home(i int, path ...string) string {
	return filepath.Join(append([]string{s.dir, fmt.Sprintf("p%d", i+1)}, path...)...)
}

// addPlugin starts one; where that can be had its state and its audit log lie on small
// disks of their own.
func (s *stage) addPlugin(i int) {
	s.t.Helper()
	for _, disk := range []string{"state", "audit"} {
		if err := os.MkdirAll(s.home(i, disk), 0o700); err != nil {
			s.t.Fatal(err)
		}
		if !apart() {
			continue
		}
		if err := syscall.Mount("tmpfs", s.home(i, disk), "tmpfs", 0, "size=16m,mode=0700"); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = syscall.Unmount(s.home(i, disk), syscall.MNT_DETACH) })
	}
	caller := fmt.Sprintf("p%d", i+1)
	s.cloud.AddPrincipal(caller)
	s.configure(i)
	p := controlplane.NewPlugin(bin, s.home(i), "plugin", s.home(i, "kms.sock"), []string{
		"AWS_CONTAINER_CREDENTIALS_FULL_URI=" + s.cloud.CredentialsURL(caller), "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
	}, "serve", "--config", s.home(i, "config.yaml"))
	if err := p.Restart(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = p.Kill()
		if s.t.Failed() {
			s.t.Logf("%s:\n%s", caller, p.Tail())
		}
	})
	conn, err := p.Dial()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	s.p, s.conn = append(s.p, p), append(s.conn, conn)
}

func (s *stage) configure(i int) {
	s.t.Helper()
	data := fmt.Sprintf(`apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: chaos
socket: {path: %s}
stateDir: %s
listenAddress: 127.0.0.1:0
audit: {path: %s}
probe: {interval: 500ms}
rotation: {observations: 2, settleTime: 500ms, readableFor: 0s}
reload: {interval: 200ms}
keys:
- {name: prod, role: write, awskms: {keyARN: "%s", endpoint: "%s"%s}}
%s`, s.home(i, "kms.sock"), s.home(i, "state"), s.home(i, "audit/audit.log"), s.arn, s.url, s.aws, s.more)
	if err := os.WriteFile(s.home(i, "config.yaml"), []byte(data), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// restartPlugin restarts one; between is done while it is down. It counts as up as soon
// as its socket answers or, if good, when it answers well: one without a state file
// refuses until the KMS has wrapped its local KEK.
func (s *stage) restartPlugin(t *testing.T, i int, good bool, between func()) {
	t.Helper()
	s.dead[i].Store(true)
	defer s.dead[i].Store(false)
	if err := s.p[i].Stop(); err != nil {
		t.Fatal(err)
	}
	between()
	if err := s.p[i].Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if good {
		within(t, 10*time.Second, "the plugin answers well", func(ctx context.Context) error {
			_, err := s.status(ctx, i)
			return err
		})
	}
}

// kms is the plugin as its API server has it: one connection, calls that wait for it.
func (s *stage) kms(i int) kmsapi.KeyManagementServiceClient {
	return kmsapi.NewKeyManagementServiceClient(s.conn[i])
}

// status asks as kube-apiserver does: 3 s, over the one connection.
func (s *stage) status(ctx context.Context, i int) (*kmsapi.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	r, err := s.kms(i).Status(ctx, &kmsapi.StatusRequest{}, grpc.WaitForReady(true))
	if err == nil && r.Healthz != "ok" {
		err = errors.New("healthz " + r.Healthz)
	}
	return r, err
}

// stored is an object as it lies in etcd.
func (s *stage) stored(ctx context.Context, name string) (etcdvalue.Object, error) {
	raw, err := s.etcd.Get(ctx, "/registry/secrets/default/"+name)
	if err != nil {
		return etcdvalue.Object{}, err
	}
	return etcdvalue.Parse(raw)
}

// within polls until f is content, and tells how long that took.
func within(t *testing.T, d time.Duration, what string, f func(ctx context.Context) error) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	begun := time.Now()
	if err := controlplane.Poll(ctx, 100*time.Millisecond, f); err != nil {
		t.Fatalf("%s: not within %s: %v", what, d, err)
	}
	return time.Since(begun)
}

// shows demands a line of a plugin's metrics.
func (s *stage) shows(i int, line string) func(context.Context) error {
	return func(ctx context.Context) error {
		text, err := s.p[i].Get(ctx, "/metrics")
		if err == nil && !strings.Contains(text, line) {
			err = errors.New("no " + line)
		}
		return err
	}
}
