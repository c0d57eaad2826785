package apiserver

import (
	"context"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"sigs.k8s.io/yaml"

	"kms-plugin.io/internal/config"
)

// The manifest decodes strictly as a Pod, and keeps what a static pod needs.
func TestStaticPod(t *testing.T) {
	data, err := os.ReadFile("../../deploy/static-pods/kms-plugin.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := yaml.UnmarshalStrict(data, &pod); err != nil {
		t.Fatal(err)
	}
	s := pod.Spec
	c := s.Containers[0]
	for what, ok := range map[string]bool{
		"hostNetwork":              s.HostNetwork,
		"no service account token": s.AutomountServiceAccountToken != nil && !*s.AutomountServiceAccountToken && s.ServiceAccountName == "",
		"priority":                 s.PriorityClassName == "system-node-critical",
		"seccomp":                  s.SecurityContext.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault,
		"read-only root":           *c.SecurityContext.ReadOnlyRootFilesystem,
		"no escalation":            !*c.SecurityContext.AllowPrivilegeEscalation,
		"no capabilities":          len(c.SecurityContext.Capabilities.Drop) == 1 && c.SecurityContext.Capabilities.Drop[0] == "ALL",
		"no limit that kills it":   len(c.Resources.Limits) == 0 && len(c.Resources.Requests) == 2,
		"probes on loopback":       c.LivenessProbe.HTTPGet.Host == "127.0.0.1" && c.ReadinessProbe.HTTPGet.Host == "127.0.0.1",
		"liveness is /livez":       c.LivenessProbe.HTTPGet.Path == "/livez",
		"no pull from a cluster":   c.ImagePullPolicy == corev1.PullIfNotPresent,
	} {
		if !ok {
			t.Errorf("static pod: %s is not so", what)
		}
	}
	for _, v := range s.Volumes {
		if v.HostPath == nil {
			t.Errorf("volume %s is no hostPath: it would need the cluster", v.Name)
		}
	}
	example, err := os.ReadFile("../../deploy/examples/aws.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cfg, problems := config.Parse(example)
	if problems != nil {
		t.Fatal(problems)
	}
	// What the example names must be mounted.
	for _, path := range []string{cfg.Socket.Path, cfg.StateDir + "/x", cfg.Audit.Path} {
		found := false
		for _, m := range c.VolumeMounts {
			found = found || strings.HasPrefix(path, m.MountPath+"/")
		}
		if !found {
			t.Errorf("%s of the example is not mounted in the static pod", path)
		}
	}
}

// The API server accepts the EncryptionConfiguration as it is.
func TestEncryptionConfiguration(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c, err := encryptionconfig.LoadEncryptionConfig(ctx, "../../deploy/static-pods/encryption-configuration.yaml", true, t.Name())
	if err != nil {
		t.Fatal(err)
	}
	if c.Transformers[schema.GroupResource{Resource: "secrets"}] == nil {
		t.Error("Secrets are not encrypted")
	}
}
