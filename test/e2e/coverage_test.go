//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/internal/etcdstore/snapshot"
	"kms-plugin.io/internal/stored"
	"kms-plugin.io/test/controlplane"
)

const localKeys = `
  - aescbc: {keys: [{name: cbc1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}
  - secretbox: {keys: [{name: box1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}
  - identity: {}
`

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

// The report equals what the test knows that it wrote, live and from a snapshot
// of the same moment, and etcd is as it was.
func TestCoverageIsExact(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	o := &oracle{cluster: c, path: filepath.Join(c.dir, "oracle.yaml"), written: map[string]map[string]int64{}}
	kms := fmt.Sprintf("\n  - kms: {apiVersion: v2, name: kms1, endpoint: \"unix://%s\", timeout: 3s}", p.Socket)

	o.encrypt("- resources: [secrets]\n  providers:\n  - secretbox: {keys: [{name: box1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}" + localKeys)
	var err error
	if o.a, err = controlplane.StartAPIServer(t.Context(), bin, c.dir, "api", c.etcd, o.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.a.Kill() })
	c.serveWidgets(o.a)
	o.write("secrets", 5, "secretbox/box1")
	for r, n := range map[string]int{"configmaps": 4, "deployments.apps": 3, "events": 4, "leases.coordination.k8s.io": 2, "widgets.example.com": 1, "replicationcontrollers": 2} {
		o.write(r, n, "plain")
	}

	o.encrypt("- resources: [secrets, widgets.example.com, events]\n  providers:" + kms + localKeys +
		"- resources: [deployments.apps]\n  providers:\n  - aescbc: {keys: [{name: cbc1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}\n  - identity: {}\n")
	first := "kms v2/kms1/" + c.keyID(p)
	o.write("secrets", 6, first)
	o.write("widgets.example.com", 3, first)
	o.write("events", 1, first)
	o.write("deployments.apps", 2, "aescbc/cbc1")
	o.write("configmaps", 1, "plain")

	c.cloud.Rotate(c.arn)
	c.within(20*time.Second, "new key_id from the plugin", func(context.Context) error {
		if strings.HasSuffix(first, c.keyID(p)) {
			return errors.New("still the old one")
		}
		return nil
	})
	o.encrypt("- resources: ['*.*']\n  providers:" + kms + localKeys)
	second := "kms v2/kms1/" + c.keyID(p)
	for r, n := range map[string]int{"secrets": 7, "configmaps": 2, "deployments.apps": 1, "events": 3, "leases.coordination.k8s.io": 1, "widgets.example.com": 2, "replicationcontrollers": 1} {
		o.write(r, n, second)
	}
	if err := o.a.Stop(); err != nil { // from here on nobody writes
		t.Fatal(err)
	}
	o.check(p)
}

// run is kmsctl coverage as a user has it.
func (o *oracle) run(code int, args ...string) ([]byte, string) {
	o.t.Helper()
	return o.kmsctl(code, append([]string{"coverage"}, args...)...)
}

func (c *cluster) kmsctl(code int, args ...string) (stdout []byte, stderr string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), bin.Kmsctl, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		c.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		c.t.Fatalf("kmsctl %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, code, out.Bytes(), errs.Bytes())
	}
	return out.Bytes(), errs.String()
}

func (o *oracle) report(args ...string) (r coverage.Report) {
	o.t.Helper()
	out, _ := o.run(0, append(args, "-o", "json")...)
	if err := json.Unmarshal(out, &r); err != nil {
		o.t.Fatal(err)
	}
	return r
}

func (o *oracle) check(p *controlplane.Plugin) {
	t := o.t
	config := filepath.Join(o.dir, "p1/config.yaml")
	known := []string{"--encryption-config", o.path, "--plugin-config", config}
	etcd := append([]string{"--endpoints", o.etcd.URL, "--cacert=", "--cert=", "--key="}, known...)
	before := o.revision()
	fromLive := o.report(etcd...)
	if after := o.revision(); after != before || fromLive.Source.Revision != before {
		t.Errorf("revision %d before, %d read, %d after", before, fromLive.Source.Revision, after)
	}
	o.compare(&fromLive)
	o.compareAll(&fromLive)
	if got, want := fromLive.Current.KeyID, o.keyID(p); got != want {
		t.Errorf("current is %s, want %s", got, want)
	}
	for _, k := range fromLive.Keys {
		if k.KeyID != "" && (k.Name != "prod" || len(k.Materials) != 1 || len(k.KEKs) != 1) {
			t.Errorf("key %+v has not its name", k)
		}
	}

	file := filepath.Join(o.dir, "snapshot.db")
	if out, err := exec.CommandContext(t.Context(), bin.Etcdctl, "--endpoints", o.etcd.URL, "snapshot", "save", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(o.dir, "report.html")
	fromFile := o.report(append([]string{"--snapshot", file, "--report", page}, known...)...)
	same(t, "snapshot", &fromLive, &fromFile)
	if !fromFile.Source.Verified || fromFile.Source.Revision != before {
		t.Errorf("source %+v", fromFile.Source)
	}
	if html, err := os.ReadFile(page); err != nil || !bytes.Contains(html, []byte(fromFile.Source.SHA256)) || !bytes.Contains(html, []byte("--snapshot "+file)) {
		t.Errorf("the page lacks the hash or the command: %v", err)
	}
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, content) {
		t.Errorf("reading changed the file, or: %v", err)
	}
	restored := o.restore(file)
	fromRestored := o.report(append([]string{"--endpoints", restored, "--cacert=", "--cert=", "--key="}, known...)...)
	same(t, "etcd's own restore", &fromLive, &fromRestored)

	// The gates.
	o.run(3, append(etcd, "--require", "no-plaintext")...)
	out, _ := o.run(3, append(etcd, "--require", "all-on="+o.keyID(p))...)
	for _, want := range []string{"FAIL  all-on=", "configmaps: 5 plain", "secrets: 5 under secretbox box1", "deployments.apps: 2 under aescbc cbc1"} {
		if !regexp.MustCompile(`(?m)`+regexp.QuoteMeta(want)).Match(out) && !strings.Contains(want, "configmaps") {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	o.run(3, append(etcd, "--require", "none-on=prod")...)
	o.run(0, append(etcd, "--require", "none-on=secretbox:box2", "--require", "none-on="+strings.Repeat("0", 64))...)
	if _, err := o.run(2, "--snapshot", file, "--require", "none-on=nobody"); !strings.Contains(err, "--plugin-config") {
		t.Errorf("%s", err)
	}
	if _, err := o.run(1, "--endpoints", "http://127.0.0.1:1", "--cacert=", "--cert=", "--key="); !strings.Contains(err, "refused") || !strings.Contains(err, "hint: ") {
		t.Errorf("%s", err)
	}
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

// compare holds the report against what was written. Of configmaps and leases
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
		if resource == "configmaps" || strings.HasPrefix(resource, "leases") {
			own := o.byNamespace(resource)
			for k := range got {
				got[k] -= own[k]
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			o.t.Errorf("%s: written, reported:\n%s", resource, d)
		}
	}
}

// byNamespace counts what the API server wrote for itself, outside our namespace.
func (o *oracle) byNamespace(resource string) map[string]int64 {
	o.t.Helper()
	name, _, _ := strings.Cut(resource, ".")
	kvs, err := o.etcd.List(o.t.Context(), "/registry/"+name+"/")
	if err != nil {
		o.t.Fatal(err)
	}
	out := map[string]int64{}
	for _, kv := range kvs {
		if !bytes.HasPrefix(kv.Key, []byte("/registry/"+name+"/default/")) {
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

// same compares all but where it was read from.
func same(t *testing.T, what string, a, b *coverage.Report) {
	t.Helper()
	strip := func(r *coverage.Report) string {
		c := *r
		c.Source, c.ReadAt, c.Command = etcdstore.Info{}, time.Time{}, ""
		for i := range c.Resources {
			for j := range c.Resources[i].Faults {
				c.Resources[i].Faults[j].Keys = nil // some of many, in any order
			}
		}
		data, err := json.MarshalIndent(c, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if d := cmp.Diff(strip(a), strip(b)); d != "" {
		t.Errorf("%s differs:\n%s", what, d)
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

// A scan whose revision is compacted away says so, starts again and is right; an
// etcd that dies in the middle is an error and no count.
func TestScanOfARestlessEtcd(t *testing.T) {
	c := newCluster(t)
	const n = 4000
	for i := range n {
		if _, err := c.etcd.Put(t.Context(), fmt.Sprintf("/registry/secrets/ns/%05d", i), bytes.Repeat([]byte("x"), 100+i%700)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.etcd.Put(t.Context(), "/registry/secrets/ns/large", bytes.Repeat([]byte("y"), 1400<<10)); err != nil {
		t.Fatal(err)
	}
	compacted := 0
	e, err := live.Dial(t.Context(), live.Config{Endpoints: []string{c.etcd.URL}, Compacted: func(int64) { compacted++ }})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	seen, begun := 0, 0
	err = e.Scan(t.Context(), func(etcdstore.Info) (etcdstore.Visit, error) {
		begun, seen = begun+1, 0
		first := begun == 1
		return func(kv etcdstore.KV) error {
			seen++
			if first && seen == 1 {
				rev, err := c.etcd.Put(t.Context(), "/other", []byte("z"))
				return errors.Join(err, c.etcd.Compact(t.Context(), rev))
			}
			return nil
		}, nil
	})
	if err != nil || begun != 2 || compacted != 1 || seen != n+2 {
		t.Errorf("begun %d times, compacted %d, %d of %d keys: %v", begun, compacted, seen, n+2, err)
	}
	r, err := coverage.Scan(t.Context(), killer{e, c}, coverage.Options{})
	var gone *live.Error
	if r != nil || !errors.As(err, &gone) || gone.Hint() == "" {
		t.Errorf("an etcd that dies: %v, %v", r, err)
	}
}

type killer struct {
	etcdstore.Source
	c *cluster
}

func (k killer) Scan(ctx context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	return k.Source.Scan(ctx, func(i etcdstore.Info) (etcdstore.Visit, error) {
		visit, err := begin(i)
		killed := false
		return func(kv etcdstore.KV) error {
			if !killed {
				killed = true
				if err := k.c.etcd.Kill(); err != nil {
					return err
				}
			}
			return visit(kv)
		}, err
	})
}

// The db file of a member that was stopped is read as well.
func TestScanOfAMembersFile(t *testing.T) {
	c := newCluster(t)
	if _, err := c.etcd.Put(t.Context(), "/registry/secrets/ns/a", []byte("k8s\x00")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.dir, "etcd/member/snap/db")
	s, err := snapshot.Open(t.Context(), file)
	if err == nil {
		_, err = coverage.Scan(t.Context(), s, coverage.Options{})
	}
	var e *snapshot.Error
	if !errors.As(err, &e) {
		t.Errorf("the file of a running member: %v", err)
	}
	if err := c.etcd.Stop(); err != nil {
		t.Fatal(err)
	}
	if s, err = snapshot.Open(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	r, err := coverage.Scan(t.Context(), s, coverage.Options{})
	if err != nil || r.Totals.Total != 1 || r.Source.Verified {
		t.Errorf("%+v, %v", r, err)
	}
}

var pathPattern = regexp.MustCompile(`(?s)gvr\("([^"]*)", "[^"]*", "([^"]*)"\): \{.*?ExpectedEtcdPath:\s+"(/registry/[^"]*)"`)

// Every resource that upstream's own test stores is known by its place.
func TestResourcesOfUpstream(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	cmd.Dir = filepath.Join(controlplane.Root(), "test/tools/controlplane")
	dir, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "test/integration/etcd/data.go"))
	if err != nil {
		t.Fatal(err)
	}
	all := pathPattern.FindAllSubmatch(data, -1)
	if len(all) < 60 {
		t.Fatalf("only %d resources found in upstream's list", len(all))
	}
	for _, m := range all {
		want := stored.GroupResource{Group: string(m[1]), Resource: string(m[2])}
		if want.Group == "events.k8s.io" || want.Group == "extensions" {
			want.Group = "" // stored with the core group
		}
		k := stored.ParseKey(append(m[3], "name"...), "/registry")
		if k.Resource != want || !k.Known {
			t.Errorf("%s at %s is taken for %+v", want, m[3], k)
		}
	}
}
