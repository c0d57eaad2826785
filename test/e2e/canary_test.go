//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/canary"
	"kms-plugin.io/test/controlplane"
)

// kubectl is the flags that reach these API servers.
func (c *cluster) kubeFlags(servers ...*controlplane.APIServer) []string {
	c.t.Helper()
	path := filepath.Join(c.dir, "kubeconfig")
	if err := controlplane.Kubeconfig(path, servers...); err != nil {
		c.t.Fatal(err)
	}
	var urls []string
	for _, a := range servers {
		urls = append(urls, a.URL)
	}
	return []string{"--kubeconfig", path, "--servers", strings.Join(urls, ",")}
}

func (c *cluster) etcdFlags() []string {
	return []string{"--endpoints", c.etcd.Clients(), "--cacert=", "--cert=", "--key="}
}

func TestCanary(t *testing.T) {
	c := newCluster(t)
	p1, p2 := c.plugin("p1", ""), c.plugin("p2", "")
	a1, a2 := c.apiServer("api1", p1), c.apiServer("api2", p2)
	args := append(append([]string{"canary", "-n", "default", "--etcd"}, c.kubeFlags(a1, a2)...), c.etcdFlags()...)
	textfile := filepath.Join(c.dir, "canary.prom")
	out, _ := c.kmsctl(0, append(args, "-o", "json", "--provider", "kms1", "--key-id", c.keyID(p1), "--textfile", textfile)...)
	var r canary.Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Writes) != 2 || !r.Writes[0].Reads[1].OK || r.Writes[1].KeyID != c.keyID(p2) {
		t.Errorf("%s", out)
	}
	if data, err := os.ReadFile(textfile); err != nil || !strings.Contains(string(data), "kms_canary_passed 1\n") {
		t.Errorf("%s, %v", data, err)
	}
	if left, err := c.etcd.List(t.Context(), "/registry/secrets/default/"); err != nil || len(left) != 0 {
		t.Errorf("%d Secrets are left: %v", len(left), err)
	}
	// Each plugin now knows the local KEK of the other.
	for _, p := range []*controlplane.Plugin{p1, p2} {
		c.within(20*time.Second, p.Socket+" knows both local KEKs", func(ctx context.Context) error {
			text, err := p.Get(ctx, "/metrics")
			if n := strings.Count(text, "kms_plugin_local_kek_info{"); err == nil && n != 2 {
				err = fmt.Errorf("it knows %d", n)
			}
			return err
		})
	}
	// One plugin does not see the rotation.
	c.cloud.SetConsistency(func(caller string, _ int, history []string) int {
		if caller == "p2" {
			return 0
		}
		return len(history) - 1
	})
	c.cloud.Rotate(c.arn)
	old := c.keyID(p2)
	c.within(20*time.Second, "p1 turns", func(context.Context) error {
		if c.keyID(p1) == old {
			return errors.New("still the old key_id")
		}
		return nil
	})
	c.restart(a1)
	text, _ := c.kmsctl(3, args...)
	if !strings.Contains(string(text), fmt.Sprintf("FAIL  %s writes under key_id", strings.TrimPrefix(a1.URL, "https://"))) {
		t.Errorf("%s", text)
	}
	// One API server writes in plain text.
	if err := os.WriteFile(filepath.Join(c.dir, "api2-encryption.yaml"), []byte(fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers: [{identity: {}}, {kms: {apiVersion: v2, name: kms1, endpoint: "unix://%s"}}]
`, p2.Socket)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.restart(a2)
	text, _ = c.kmsctl(3, append(args, "--through", strings.TrimPrefix(a2.URL, "https://"))...)
	if !strings.Contains(string(text), "PLAIN TEXT") {
		t.Errorf("%s", text)
	}
}
