package apiserver

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"sigs.k8s.io/yaml"

	"kms-plugin.io/internal/bootstrap"
)

const movedFrom = `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - aescbc: {keys: [{name: key1, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}
  - kms: {apiVersion: v2, name: other, endpoint: unix:///run/other.sock, timeout: 3s}
  - identity: {}
`

// loadData has the API server's own code read a file, and gives its error.
func loadData(t *testing.T, data []byte) (*encryptionconfig.EncryptionConfiguration, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return encryptionconfig.LoadEncryptionConfig(ctx, path, true, t.Name())
}

// The API server takes every EncryptionConfiguration that kmsctl init makes.
func TestBootstrapEncryptionConfiguration(t *testing.T) {
	for name, p := range map[string]bootstrap.Params{
		"new":      {ClusterID: "c", LocalFile: true},
		"existing": {ClusterID: "c", LocalFile: true, Existing: true, Resources: []string{"secrets", "configmaps", "*.apps", "widgets.example.com"}},
		"all":      {ClusterID: "c", LocalFile: true, Existing: true, Resources: []string{"*.*"}, ProviderName: "null"},
		"from":     {ClusterID: "c", LocalFile: true, From: []byte(movedFrom), EncryptionPath: "/etc/enc/enc.yaml"},
	} {
		files, err := bootstrap.Files(p)
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, f := range files {
			if !strings.HasPrefix(f.Path, "encryption/") {
				continue
			}
			seen++
			t.Run(name+"/"+filepath.Base(f.Path), func(t *testing.T) {
				t.Parallel()
				c, err := loadData(t, f.Data)
				if err != nil {
					t.Fatalf("%v\n%s", err, f.Data)
				}
				if c.Transformers[schema.GroupResource{Resource: "secrets"}] == nil && c.Transformers[schema.GroupResource{Group: "*", Resource: "*"}] == nil {
					t.Error("Secrets are not encrypted")
				}
			})
		}
		if want := map[bool]int{true: 3, false: 2}[p.Existing || p.From != nil]; seen != want {
			t.Errorf("%s: %d files, want %d", name, seen, want)
		}
	}
}

// A list of resources that the API server refuses is refused by kmsctl init, and of
// those that would encrypt nothing only kmsctl init knows.
func TestBootstrapResources(t *testing.T) {
	for _, tc := range []struct {
		list      string
		apiserver bool
		ours      bool
	}{
		{"secrets", true, true}, {"secrets,configmaps", true, true}, {"*.*", true, true}, {"*.", true, true}, {"*.apps,secrets", true, true},
		{"events", true, true}, {"widgets.example.com", true, true}, {"*.example.com", true, true},
		{"*", false, false}, {"Secrets", false, false}, {"secrets,secrets", false, false}, {"secrets,*.", false, false}, {"*.*,secrets", false, false},
		{"secrets.*", false, false}, {"events.events.k8s.io", false, false}, {"deployments.extensions", false, false}, {"serviceipallocations", false, false},
		{"secret", true, false}, {"deployments", true, false}, {"secrets.apps", true, false}, {"*.app", true, false},
	} {
		quoted := `["` + strings.ReplaceAll(tc.list, ",", `", "`) + `"]`
		_, err := loadData(t, []byte(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources: [{resources: `+quoted+`, providers: [{kms: {apiVersion: v2, name: k, endpoint: "unix:///k.sock", timeout: 3s}}]}]`))
		if (err == nil) != tc.apiserver {
			t.Errorf("%s: the API server says %v, want ok %t", tc.list, err, tc.apiserver)
		}
		if _, err := bootstrap.Files(bootstrap.Params{ClusterID: "c", LocalFile: true, Resources: strings.Split(tc.list, ",")}); (err == nil) != tc.ours {
			t.Errorf("%s: kmsctl init says %v, want ok %t", tc.list, err, tc.ours)
		}
	}
}

// Every static pod decodes strictly, and mounts what the configuration names.
func TestBootstrapStaticPod(t *testing.T) {
	files, err := bootstrap.Files(bootstrap.Params{ClusterID: "c", LocalFile: true, Image: "registry.example.com/kms:v1@sha256:" + strings.Repeat("0", 64)})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Path != "kms-plugin/kms-plugin.yaml" {
			continue
		}
		var pod corev1.Pod
		if err := yaml.UnmarshalStrict(f.Data, &pod); err != nil {
			t.Fatal(err)
		}
		mounted := map[string]bool{}
		for _, m := range pod.Spec.Containers[0].VolumeMounts {
			mounted[m.MountPath] = true
		}
		for _, dir := range []string{filepath.Dir(bootstrap.ConfigPath), bootstrap.SocketDir, bootstrap.StateDir, bootstrap.AuditDir} {
			if !mounted[dir] {
				t.Errorf("%s is not mounted", dir)
			}
		}
		return
	}
	t.Error("no static pod")
}
