package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/cluster"
	"kms-plugin.io/internal/status"
)

// The files of a node that kubeadm made; DIR is a directory of the test.
const (
	pluginConfig = `apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: c
socket: {path: DIR/run/kms.sock}
stateDir: DIR/state
keys:
- name: prod
  role: write
  awskms: {keyARN: "arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555"}
`
	encryption = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - kms: {apiVersion: v2, name: ours, endpoint: "unix:///run/kms-plugin/kms.sock", timeout: 3s}
  - identity: {}
`
	manifest = `apiVersion: v1
kind: Pod
metadata: {name: kube-apiserver, namespace: kube-system}
spec:
  containers:
  - name: kube-apiserver
    command:
    - kube-apiserver
    - --encryption-provider-config=/etc/kubernetes/enc/enc.yaml
    - --encryption-provider-config-automatic-reload=true
    - --tls-min-version=VersionTLS12
    volumeMounts:
    - {name: enc, mountPath: /etc/kubernetes/enc, readOnly: true}
    - {name: pki, mountPath: /etc/kubernetes/pki, readOnly: true}
    - {name: kms, mountPath: /run/kms-plugin}
  hostNetwork: true
  volumes:
  - {name: enc, hostPath: {path: DIR/enc, type: DirectoryOrCreate}}
  - {name: pki, hostPath: {path: /etc/kubernetes/pki}}
  - {name: kms, hostPath: {path: DIR/run, type: DirectoryOrCreate}}
`
)

// etcd is a source with one value for each Secret, and others.
type etcd map[string]string

func (e etcd) Scan(_ context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	visit, err := begin(etcdstore.Info{Kind: "etcd", Revision: 7})
	for key, value := range e {
		if err == nil {
			err = visit(etcdstore.KV{Key: []byte("/registry/" + key), Value: []byte(value), ModRevision: 1})
		}
	}
	return err
}

func under(provider string) string {
	f := func(num protowire.Number, v string) string {
		return string(protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte(v)))
	}
	return "k8s:enc:kms:v2:" + provider + ":" + f(1, "d") + f(2, "prod:00000000000000000000000000000000") + f(3, "s")
}

// plainSecret begins as protobuf objects of kube-apiserver do.
const plainSecret = "k8s\x00\n\x0c\n\x02v1\x12\x06Secret\x12\x00\x1a\x00\"\x00"

type setup struct {
	plugin, encryption, manifest string
	stored                       etcd // nil: etcd is not looked at
	plugins                      map[string]*status.Plugin
	options                      func(dir string, o *cluster.Options)
}

func good() setup { return setup{plugin: pluginConfig, encryption: encryption, manifest: manifest} }

func (s setup) run(t *testing.T) *preflight.Report {
	t.Helper()
	dir, err := os.MkdirTemp("", "cl") // no name of a test in it: it is written into YAML
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, data := range map[string]string{"plugin.yaml": s.plugin, "enc/enc.yaml": s.encryption, "manifest.yaml": s.manifest} {
		file := filepath.Join(dir, name)
		if data == "" {
			continue
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(strings.ReplaceAll(data, "DIR", dir)), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	o := cluster.Options{PluginConfig: dir + "/plugin.yaml", Manifest: dir + "/manifest.yaml"}
	if s.stored != nil {
		o.Coverage = func(ctx context.Context, e *encryptionconfig.Config, n *coverage.Names) (*coverage.Report, error) {
			return coverage.Scan(ctx, s.stored, coverage.Options{Prefix: "/registry", Encryption: e, Names: n})
		}
	}
	for a := range s.plugins {
		o.Plugins = append(o.Plugins, a)
	}
	slices.Sort(o.Plugins)
	o.Scrape = func(_ context.Context, a string) (*status.Plugin, error) {
		if s.plugins[a] == nil {
			return nil, errors.New("connection refused")
		}
		if s.plugins[a].ConfigHash == "same" {
			data, err := os.ReadFile(o.PluginConfig)
			if err != nil {
				return nil, err
			}
			s.plugins[a].ConfigHash = config.Hash(data)
		}
		return s.plugins[a], nil
	}
	if s.options != nil {
		s.options(dir, &o)
	}
	return preflight.Run(t.Context(), cluster.Checks(o), preflight.Options{Program: "test"})
}

func runs(id string, known ...string) *status.Plugin {
	return &status.Plugin{Ready: true, ConfigHash: "same", KeyIDHash: "sha256:" + id, LocalKEKs: len(known), LocalKEKIDs: known}
}

func identityFirst(s *setup) {
	swapText("  - identity: {}\n", "")(s)
	swapText("  - kms:", "  - identity: {}\n  - kms:")(s)
}

func dropKMS(s *setup) {
	i := strings.Index(s.encryption, "  - kms:")
	s.encryption = s.encryption[:i] + "  - identity: {}\n"
}

func failing(err error) func(string, *cluster.Options) {
	return func(_ string, o *cluster.Options) {
		o.Coverage = func(context.Context, *encryptionconfig.Config, *coverage.Names) (*coverage.Report, error) {
			return nil, err
		}
	}
}

func plugins(all ...*status.Plugin) func(*setup) {
	return func(s *setup) {
		s.plugins = map[string]*status.Plugin{}
		for i, p := range all {
			s.plugins[fmt.Sprintf("p%d:1", i)] = p
		}
	}
}
