//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/test/controlplane"
)

const localKeys = `
  - aescbc: {keys: [{name: cbc1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}
  - secretbox: {keys: [{name: box1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}
  - identity: {}
`

const gcmKey = "\n  - aesgcm: {keys: [{name: gcm1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}"

// oracle knows what it wrote, and under what.
type oracle struct {
	*cluster
	a       *controlplane.APIServer
	path    string // of the EncryptionConfiguration
	written map[string]map[string]int64
	n       int
}

func (o *oracle) encrypt(rules string) {
	o.t.Helper()
	data := "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n" + rules
	if err := os.WriteFile(o.path, []byte(data), 0o600); err != nil {
		o.t.Fatal(err)
	}
	if o.a != nil {
		o.restart(o.a)
	}
}

var objects = map[string]struct{ path, body string }{
	"secrets":                    {"/api/v1/namespaces/default/secrets", `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"%s"},"data":{"v":"eA=="}}`},
	"configmaps":                 {"/api/v1/namespaces/default/configmaps", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"%s"}}`},
	"events":                     {"/api/v1/namespaces/default/events", `{"apiVersion":"v1","kind":"Event","metadata":{"name":"%s"},"involvedObject":{"namespace":"default"}}`},
	"replicationcontrollers":     {"/api/v1/namespaces/default/replicationcontrollers", `{"apiVersion":"v1","kind":"ReplicationController","metadata":{"name":"%s"},"spec":{"replicas":0,"selector":{"a":"b"},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`},
	"deployments.apps":           {"/apis/apps/v1/namespaces/default/deployments", `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"%s"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`},
	"leases.coordination.k8s.io": {"/apis/coordination.k8s.io/v1/namespaces/default/leases", `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"%s"}}`},
	"widgets.example.com":        {"/apis/example.com/v1/namespaces/default/widgets", `{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"%s"}}`},
}

const widgetCRD = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"widgets.example.com"},"spec":{"group":"example.com","scope":"Namespaced","names":{"plural":"widgets","singular":"widget","kind":"Widget","listKind":"WidgetList"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`

// serveWidgets makes the custom resource and waits until all serve it.
func (c *cluster) serveWidgets(servers ...*controlplane.APIServer) {
	c.t.Helper()
	if err := servers[0].Create(c.t.Context(), "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", widgetCRD); err != nil {
		c.t.Fatal(err)
	}
	for _, a := range servers {
		c.within(30*time.Second, "widgets are served", func(ctx context.Context) error {
			_, err := a.Text(ctx, objects["widgets.example.com"].path)
			return err
		})
	}
}

// write creates n objects that must end under the key of that report id.
func (o *oracle) write(resource string, n int, key string) {
	o.t.Helper()
	for range n {
		o.n++
		what := objects[resource]
		if err := o.a.Create(o.t.Context(), what.path, fmt.Sprintf(what.body, fmt.Sprintf("o%d", o.n))); err != nil {
			o.t.Fatal(err)
		}
	}
	if o.written[resource] == nil {
		o.written[resource] = map[string]int64{}
	}
	o.written[resource][key] += int64(n)
}

// writeLarge creates a custom resource of 1.4 MiB: with the API server's own fields, and
// encrypted, it is about all that etcd takes (1.5 MiB a request).
func (o *oracle) writeLarge(key string) {
	o.t.Helper()
	what := objects["widgets.example.com"]
	body := fmt.Sprintf(what.body, "large")
	body = strings.TrimSuffix(body, "}") + `,"spec":"` + strings.Repeat("x", 1400<<10) + `"}`
	if err := o.a.Create(o.t.Context(), what.path, body); err != nil {
		o.t.Fatal(err)
	}
	o.written["widgets.example.com"][key]++
}

func (o *oracle) revision() int64 {
	o.t.Helper()
	out, err := exec.CommandContext(o.t.Context(), bin.Etcdctl, "--endpoints", o.etcd.URL, "endpoint", "status", "-w", "json").Output()
	if err != nil {
		o.t.Fatal(err)
	}
	var s []struct {
		Status struct{ Header struct{ Revision int64 } }
	}
	if err := json.Unmarshal(out, &s); err != nil {
		o.t.Fatal(err)
	}
	return s[0].Status.Header.Revision
}

// compare holds the report against what was written. Of configmaps, leases and events
// the API server has some of its own.
func (o *oracle) compare(r *coverage.Report) {
	o.t.Helper()
	for resource, want := range o.written {
		got := map[string]int64{}
		for _, x := range r.Resources {
			if x.Resource != resource {
				continue
			}
			if n := x.Plain + x.AsIs; n > 0 {
				got["plain"] = n
			}
			for _, k := range x.Keys {
				got[k.Key] = k.Objects
			}
		}
		if resource == "configmaps" || resource == "events" || strings.HasPrefix(resource, "leases") {
			own := o.notOurs(resource)
			for k := range got {
				got[k] -= own[k]
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			o.t.Errorf("%s: written, reported:\n%s", resource, d)
		}
	}
}

var ours = regexp.MustCompile(`/default/o[0-9]+$`)

// notOurs counts what the API server wrote for itself: leases, configmaps, and an event
// when it repairs something.
func (o *oracle) notOurs(resource string) map[string]int64 {
	o.t.Helper()
	name, _, _ := strings.Cut(resource, ".")
	kvs, err := o.etcd.List(o.t.Context(), "/registry/"+name+"/")
	if err != nil {
		o.t.Fatal(err)
	}
	out := map[string]int64{}
	for _, kv := range kvs {
		if !ours.Match(kv.Key) {
			out[o.simple(kv.Value)]++
		}
	}
	return out
}

var keyIDPattern = regexp.MustCompile(`prod:[0-9a-f]{32}`)

// simple tells in another way than the product how a value is stored.
func (o *oracle) simple(value []byte) string {
	switch s := string(value); {
	case strings.HasPrefix(s, "k8s:enc:kms:v2:kms1:"):
		return "kms v2/kms1/" + keyIDPattern.FindString(s)
	case strings.HasPrefix(s, "k8s:enc:kms:v1:old1:"):
		return "kms v1/old1"
	case strings.HasPrefix(s, "k8s:enc:aesgcm:v1:gcm1:"):
		return "aesgcm/gcm1"
	case strings.HasPrefix(s, "k8s:enc:aescbc:v1:cbc1:"):
		return "aescbc/cbc1"
	case strings.HasPrefix(s, "k8s:enc:secretbox:v1:box1:"):
		return "secretbox/box1"
	case strings.HasPrefix(s, "k8s:enc:"):
		o.t.Errorf("a value begins %.40q", s)
	}
	return "plain"
}

// compareAll counts everything in etcd by key.
func (o *oracle) compareAll(r *coverage.Report) {
	o.t.Helper()
	kvs, err := o.etcd.List(o.t.Context(), "\x00")
	if err == nil {
		var rest []controlplane.KV
		for b := 1; b < 255 && err == nil; b++ {
			rest, err = o.etcd.List(o.t.Context(), string([]byte{byte(b)}))
			kvs = append(kvs, rest...)
		}
	}
	if err != nil {
		o.t.Fatal(err)
	}
	want, got := map[string]int64{}, map[string]int64{}
	for _, kv := range kvs {
		want[o.simple(kv.Value)]++
	}
	for _, k := range r.Keys {
		got[k.ID] = k.Objects
	}
	got["plain"] = r.Totals.Plain + r.Totals.AsIs
	if d := cmp.Diff(want, got); d != "" || r.Totals.Total != int64(len(kvs)) {
		o.t.Errorf("of all %d values, reported %d:\n%s", len(kvs), r.Totals.Total, d)
	}
}

// restore lets etcd's own programs read the snapshot, and serves it.
func (o *oracle) restore(file string) string {
	o.t.Helper()
	dir := filepath.Join(o.dir, "restored")
	e, err := controlplane.RestoreEtcd(o.t.Context(), bin, dir, file)
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() { _ = e.Kill() })
	return e.URL
}
