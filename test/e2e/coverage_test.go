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
	"kms-plugin.io/test/controlplane"
)

// The report equals what the test knows that it wrote, live and from a snapshot
// of the same moment, and etcd is as it was.
func TestCoverageIsExact(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	o := &oracle{cluster: c, path: filepath.Join(c.dir, "oracle.yaml"), written: map[string]map[string]int64{}}
	kms := fmt.Sprintf("\n  - kms: {apiVersion: v2, name: kms1, endpoint: \"unix://%s\", timeout: 3s}", p.Socket)
	v1 := fmt.Sprintf("\n  - kms: {name: old1, endpoint: \"unix://%s\", cachesize: 100, timeout: 3s}", serveKMSv1(t, c.dir))

	o.encrypt("- resources: [secrets]\n  providers:\n  - secretbox: {keys: [{name: box1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}" + localKeys)
	var err error
	if o.a, err = controlplane.StartAPIServer(t.Context(), bin, c.dir, "api", c.etcd, o.path, "--feature-gates=KMSv1=true"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.a.Kill() })
	c.serveWidgets(o.a)
	o.write("secrets", 5, "secretbox/box1")
	for r, n := range map[string]int{"configmaps": 4, "deployments.apps": 3, "events": 4, "leases.coordination.k8s.io": 2, "widgets.example.com": 1, "replicationcontrollers": 2} {
		o.write(r, n, "plain")
	}

	o.encrypt("- resources: [secrets]\n  providers:" + localKeys + "- resources: [replicationcontrollers]\n  providers:" + v1 + localKeys +
		"- resources: [deployments.apps]\n  providers:" + gcmKey + localKeys)
	o.write("replicationcontrollers", 3, "kms v1/old1")
	o.write("deployments.apps", 2, "aesgcm/gcm1")

	o.encrypt("- resources: [secrets, widgets.example.com, events]\n  providers:" + kms + localKeys + "- resources: [replicationcontrollers]\n  providers:\n  - identity: {}" + v1 + "\n" +
		"- resources: [deployments.apps]\n  providers:\n  - aescbc: {keys: [{name: cbc1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}]}" + gcmKey + "\n  - identity: {}\n")
	first := "kms v2/kms1/" + c.keyID(p)
	o.write("secrets", 6, first)
	o.write("widgets.example.com", 3, first)
	o.write("events", 1, first)
	o.writeLarge(first)
	o.write("deployments.apps", 2, "aescbc/cbc1")
	o.write("configmaps", 1, "plain")

	c.cloud.Rotate(c.arn)
	c.within(20*time.Second, "new key_id from the plugin", func(context.Context) error {
		if strings.HasSuffix(first, c.keyID(p)) {
			return errors.New("still the old one")
		}
		return nil
	})
	o.encrypt("- resources: ['*.*']\n  providers:" + kms + v1 + gcmKey + localKeys)
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
	for _, want := range []string{"FAIL  all-on=", "configmaps: 5 plain", "secrets: 5 under secretbox box1", "deployments.apps: 2 under aescbc cbc1", "deployments.apps: 2 under aesgcm gcm1", "replicationcontrollers: 3 under kms v1 old1"} {
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

// A walk outlives any number of compactions, by which a scan would have given up.
func TestWalkOfARestlessEtcd(t *testing.T) {
	c := newCluster(t)
	const n = 3000
	for i := range n {
		if _, err := c.etcd.Put(t.Context(), fmt.Sprintf("/registry/secrets/ns/%05d", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	e, err := live.Dial(t.Context(), live.Config{Endpoints: []string{c.etcd.URL}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	seen, begun := 0, 0
	err = e.Walk(t.Context(), func(etcdstore.Info) (etcdstore.Visit, error) {
		begun++
		return func(kv etcdstore.KV) error {
			if seen++; seen%100 != 0 {
				return nil
			}
			rev, err := c.etcd.Put(t.Context(), string(kv.Key), []byte("y"))
			return errors.Join(err, c.etcd.Compact(t.Context(), rev))
		}, nil
	})
	if err != nil || begun != 1 || seen != n {
		t.Errorf("begun %d times, %d of %d keys: %v", begun, seen, n, err)
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
