//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/stored"
	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/etcdfill"
)

var update = flag.Bool("update", false, "write test/etcdfill/values.json")

// The values that snapshots for benchmarks are made of are such as this API server
// and this plugin store, but for what is random in them.
func TestFillValues(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a := c.apiServer("api", p)
	c.secretsOnly("api")
	c.restart(a)
	names := []string{"/registry/secrets/default/token", "/registry/secrets/default/tls"}
	var got []etcdfill.Value
	take := func(key string) {
		raw, err := c.etcd.Get(t.Context(), key)
		if err != nil || raw == nil {
			t.Fatalf("%s: %v", key, err)
		}
		got = append(got, etcdfill.Value{Key: key, Value: raw})
	}
	secrets := func(generation string) {
		for i, size := range []int{64, 4096} {
			name := names[i][strings.LastIndexByte(names[i], '/')+1:] + generation
			if _, err := a.CreateSecret(t.Context(), name, strings.Repeat("v", size)); err != nil {
				t.Fatal(err)
			}
			take(names[i] + generation)
		}
	}
	secrets("-1")
	old := c.keyID(p)
	c.cloud.Rotate(c.arn)
	c.within(20*time.Second, "new key_id in etcd", func(ctx context.Context) error {
		c.healthy(a, 20*time.Second)
		s, err := a.CreateSecret(ctx, fmt.Sprintf("probe-%d", time.Now().UnixNano()), "x")
		if err == nil && c.stored(s.Metadata.Name).KeyID == old {
			err = errors.New("still the old one")
		}
		return err
	})
	secrets("-2")
	for _, resource := range []string{"configmaps", "deployments.apps", "leases.coordination.k8s.io", "events"} {
		if err := a.Create(t.Context(), objects[resource].path, fmt.Sprintf(objects[resource].body, "fill")); err != nil {
			t.Fatal(err)
		}
		place, _, _ := strings.Cut(resource, ".")
		take("/registry/" + place + "/default/fill")
	}
	if *update {
		writeValues(t, got)
		return
	}
	want, err := etcdfill.Values()
	if err != nil {
		t.Fatal(err)
	}
	if a, b := shapes(t, got), shapes(t, want); !maps.Equal(a, b) {
		t.Errorf("stored now\n%v\nin values.json\n%v\nwrite it again: go test -tags e2e -run TestFillValues ./test/e2e -update", a, b)
	}
}

// secretsOnly leaves everything but Secrets in plain text, as most clusters do.
func (c *cluster) secretsOnly(name string) {
	c.t.Helper()
	path := filepath.Join(c.dir, name+"-encryption.yaml")
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(strings.Replace(string(data), "[secrets, events, widgets.example.com]", "[secrets]", 1)), 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// shapes are what stays the same from one cluster to the next.
func shapes(t *testing.T, values []etcdfill.Value) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, v := range values {
		c := stored.Classify(v.Value)
		shape := fmt.Sprintf("%s, %d bytes", c.Kind, len(v.Value))
		if c.Kind == stored.KMSv2 {
			o := c.Object
			if _, err := envelope.Parse(o.Annotation(envelope.AnnotationKey)); err != nil {
				t.Errorf("%s: %v", v.Key, err)
			}
			shape += fmt.Sprintf(" by %s: data %d, key_id %d, DEK source %d, header %d", c.Name, len(o.Data), len(o.KeyID),
				len(o.EncryptedDEKSource), len(o.Annotation(envelope.AnnotationKey)))
		}
		out[v.Key] = shape
	}
	return out
}

func writeValues(t *testing.T, values []etcdfill.Value) {
	t.Helper()
	data, err := json.MarshalIndent(values, "", " ")
	if err == nil {
		err = os.WriteFile(filepath.Join(controlplane.Root(), "test/etcdfill/values.json"), append(data, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
