package bootstrap_test

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"kms-plugin.io/internal/bootstrap"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	arn  = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	role = "arn:aws:iam::111122223333:role/control-plane"
)

const aescbc = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources: [events]
    providers: [{identity: {}}]
  - resources: [secrets, configmaps]
    providers:
      - aescbc:
          keys:
            - name: key1
              secret: c2VjcmV0IGlzIHNlY3VyZQ== # of 2021
      - identity: {}
`

const otherPlugin = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: ["secrets"]
  providers:
  - kms: {apiVersion: v2, name: aws-encryption-provider, endpoint: unix:///var/run/kmsplugin/socket.sock, timeout: 3s}
  - identity: {}
`

// k3s is in the form that k3s and RKE2 write.
const k3s = `{"kind":"EncryptionConfiguration","apiVersion":"apiserver.config.k8s.io/v1","resources":[{"resources":["secrets"],"providers":[{"aescbc":{"keys":[{"name":"aescbckey","secret":"c2VjcmV0IGlzIHNlY3VyZQ=="}]}},{"identity":{}}]}]}`

const clusterConfiguration = `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
nodeRegistration: {name: cp1}
---
apiServer: {}
apiVersion: kubeadm.k8s.io/v1beta4
controlPlaneEndpoint: api.example.com:6443
kind: ClusterConfiguration
kubernetesVersion: v1.37.2
`

// cases are the golden sets, testdata/<name>.
func cases() map[string]bootstrap.Params {
	return map[string]bootstrap.Params{
		"new":          {ClusterID: "prod-eu-1", KeyARN: arn, NodeRole: role},
		"new-systemd":  {ClusterID: "prod-eu-1", KeyARN: arn, NodeRole: role, Run: bootstrap.Systemd, Resources: []string{"*.*"}, KubeadmConfig: []byte(clusterConfiguration)},
		"existing":     {ClusterID: "prod-eu-1", KeyARN: arn, Existing: true, Resources: []string{"secrets", "configmaps", "widgets.example.com"}, Endpoint: "https://vpce-1.kms.eu-west-1.vpce.amazonaws.com", Image: "registry.example.com/kms-plugin:v1.2.3"},
		"from-aescbc":  {ClusterID: "prod-eu-1", KeyARN: arn, NodeRole: role, From: []byte(aescbc), EncryptionPath: "/etc/kubernetes/enc/enc.yaml", KubeadmConfig: []byte(clusterConfiguration)},
		"from-kms":     {ClusterID: "prod-eu-1", KeyARN: arn, NodeRole: role, From: []byte(otherPlugin), EncryptionPath: "/etc/kubernetes/kms/encryption.yaml", Layout: bootstrap.Generic, Run: bootstrap.Systemd},
		"from-json":    {ClusterID: "prod-eu-1", KeyARN: arn, NodeRole: role, Layout: bootstrap.Generic, Run: bootstrap.Systemd, From: []byte(k3s), EncryptionPath: "/etc/kubernetes/encryption/config.yaml"},
		"lab":          {ClusterID: "lab", LocalFile: true, KeyName: "lab"},
		"lab-existing": {ClusterID: "1", LocalFile: true, KeyName: "null", Layout: bootstrap.Generic, Run: bootstrap.Systemd, Existing: true, ProviderName: "on"},
	}
}

func files(t *testing.T, p bootstrap.Params) []bootstrap.File {
	t.Helper()
	out, err := bootstrap.Files(p)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func data(t *testing.T, files []bootstrap.File, path string) []byte {
	t.Helper()
	for _, f := range files {
		if f.Path == path {
			return f.Data
		}
	}
	t.Fatalf("no file %s", path)
	return nil
}

// The same parameters give the same bytes; what changes them changes a golden file.
func TestGolden(t *testing.T) {
	for name, p := range cases() {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join("testdata", name)
			if *update {
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
			}
			var paths []string
			for _, f := range files(t, p) {
				paths = append(paths, f.Path)
				golden(t, filepath.Join(dir, f.Path), f.Data)
			}
			var have []string
			if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					have = append(have, strings.TrimPrefix(path, dir+"/"))
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			slices.Sort(paths)
			slices.Sort(have)
			if d := cmp.Diff(have, paths); d != "" {
				t.Errorf("golden files (-) and files made (+) differ:\n%s", d)
			}
			if d := cmp.Diff(files(t, p), files(t, p)); d != "" {
				t.Errorf("two runs differ:\n%s", d)
			}
		})
	}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s: golden file (-) and what is made (+) differ; run with -update if that is meant:\n%s", path, d)
	}
}
