package rotation

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/internal/stored"
)

const rules = `- {resources: [secrets, events, widgets.example.com], providers: [{kms: {apiVersion: v2, name: ours, endpoint: x}}, {identity: {}}]}
- {resources: [pods], providers: [{aescbc: {keys: [{name: k, secret: eA==}]}}]}
`

func TestRun(t *testing.T) {
	w := newWorld("new", "new")
	w.etcd = map[string]string{
		"/registry/secrets/ns/old": under("ours", "old"), "/registry/secrets/ns/plain": "k8s\x00", "/registry/secrets/ns/new": under("ours", "new"),
		"/registry/secrets/other/theirs": under("theirs", "x"), "/registry/example.com/widgets/w": "{}",
		"/registry/pods/ns/p": "k8s:enc:aescbc:v1:k:" + strings.Repeat("x", 32), "/registry/configmaps/ns/c": "k8s\x00", "/other": "x",
	}
	r, err := Run(t.Context(), w.options(t, rules))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(w.patched)
	want := []string{"/registry/example.com/widgets/w", "/registry/secrets/ns/old", "/registry/secrets/ns/plain", "/registry/secrets/other/theirs"}
	if !slices.Equal(w.patched, want) || r.Written != 4 || r.KeyID != "new" || r.Provider != "ours" {
		t.Errorf("patched %q, %+v", w.patched, r)
	}
	if len(w.etcd) != 8 {
		t.Errorf("left in etcd: %v", w.etcd)
	}
}

// Nobody is believed but etcd.
func TestLiesAreCaught(t *testing.T) {
	old := map[string]string{"/registry/secrets/ns/a": under("ours", "old"), "/registry/example.com/widgets/w": under("ours", "old")}
	for name, tt := range map[string]struct {
		keyIDs []string
		change func(w *world, o *Options)
		want   string
	}{
		"success without a write": {[]string{"new"}, func(w *world, _ *Options) {
			w.patch = func(_ int, key string) int {
				if strings.Contains(key, "widgets") {
					return http.StatusOK
				}
				return 0
			}
		}, "widgets.example.com: 1 older"},
		"one never saw the new key": {[]string{"new", "old"}, nil, "under \"old\""},
		"none has the target":       {[]string{"old", "old"}, func(_ *world, o *Options) { o.Target = "new" }, `writes under key_id "old"`},
		"one does not write":        {[]string{"new", ""}, nil, "cannot be read"},
		"an object is refused":      {[]string{"new"}, func(w *world, _ *Options) { w.patch = func(int, string) int { return http.StatusForbidden } }, "made to fail"},
		"written under the old key all the time": {[]string{"new"}, func(w *world, _ *Options) {
			w.onScan = func(w *world, _ int) { w.etcd["/registry/secrets/ns/late"] = under("ours", "old") }
		}, "secrets: 1 older"},
		"broken":                      {[]string{"new"}, func(w *world, _ *Options) { w.etcd["/registry/configmaps/ns/b"] = "k8s:enc:x" }, "configmaps: 0 older, 0 of other providers, 0 plain, 1 broken"},
		"one that lives is not asked": {[]string{"new"}, func(w *world, _ *Options) { w.hosts = []string{"cp3"} }, `an API server on host "cp3" lives`},
		"one is down":                 {[]string{"new"}, func(w *world, _ *Options) { w.down = []string{"cp3"} }, "kubectl delete lease -n kube-system apiserver-of-cp3"},
		"one went down meanwhile": {[]string{"new"}, func(w *world, _ *Options) {
			w.onScan = func(w *world, n int) { w.down = []string{"cp3"} }
		}, `prove: API server apiserver-of-cp3 on host "cp3" is gone or down`},
		"one may be shut down":  {[]string{"new"}, func(w *world, _ *Options) { w.planes = 2 }, "2 control-plane Nodes (cp0, cp1) and 1 API servers"},
		"another configuration": {[]string{"new", "new"}, func(w *world, _ *Options) { w.configs = []string{"sha256:a", "sha256:b"} }, "run different EncryptionConfigurations"},
		"no such provider":      {[]string{"new"}, func(_ *world, o *Options) { o.Provider = "theirs" }, `"theirs" writes nothing`},
		"another key meanwhile": {[]string{"new"}, func(w *world, _ *Options) {
			w.onScan = func(w *world, n int) {
				if n == 3 { // the proof
					w.etcd["/registry/secrets/ns/late"] = under("ours", "old")
					w.keyIDs[0] = "newer"
				}
			}
		}, "changed from new to newer"},
	} {
		w := newWorld(tt.keyIDs...)
		maps.Copy(w.etcd, old)
		o := w.options(t, rules)
		if tt.change != nil {
			tt.change(w, &o)
		}
		r, err := Run(t.Context(), o)
		var told *Error
		if r != nil || !errors.As(err, &told) || !strings.Contains(err.Error(), tt.want) || told.Hint() == "" {
			t.Errorf("%s: %v, %v, want %q", name, r, err, tt.want)
		}
	}
}

// What is written under the old key when all has been counted, or after the migrations
// and patches, is found by the proof, and written again in the next round.
func TestLateWrite(t *testing.T) {
	for name, tt := range map[string]struct {
		stale bool // at the begin
		scan  int  // before which it is written
		want  int64
	}{"nothing was left": {false, 2, 1}, "after the patches": {true, 3, 2}} {
		w := newWorld("new")
		w.etcd["/registry/secrets/ns/a"] = under("ours", "new")
		if tt.stale {
			w.etcd["/registry/secrets/ns/a"] = under("ours", "old")
		}
		w.onScan = func(w *world, n int) {
			if n == tt.scan {
				w.etcd["/registry/secrets/ns/late"] = under("ours", "old")
			}
		}
		r, err := Run(t.Context(), w.options(t, rules))
		if err != nil || r.Written != tt.want || !slices.Contains(w.patched, "/registry/secrets/ns/late") {
			t.Errorf("%s: %+v, patched %q: %v", name, r, w.patched, err)
		}
	}
}

// A run that was killed left a migration: the next one waits for it, and does not
// make a second.
func TestMigrationOfAKilledRunIsTakenUp(t *testing.T) {
	w := newWorld("new")
	w.manager = true
	w.etcd = map[string]string{"/registry/secrets/ns/a": under("ours", "old"), "/registry/secrets/ns/b": under("ours", "old")}
	w.svm["kmsctl-secrets-left"] = map[string]any{"apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration", "metadata": map[string]any{"name": "kmsctl-secrets-left"},
		"spec": map[string]any{"resource": map[string]any{"group": "", "resource": "secrets"}}}
	o := w.options(t, rules)
	var said strings.Builder
	o.Via, o.Say = ViaAuto, func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) }
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said.String(), "StorageVersionMigration kmsctl-secrets-left of secrets, 2 objects") {
		t.Errorf("it was not taken up:\n%s", said.String())
	}
}

// One that never moves is left to patches.
func TestStalledMigration(t *testing.T) {
	w := newWorld("new")
	w.manager = true
	w.etcd = map[string]string{"/registry/secrets/ns/a": under("ours", "old")}
	o := w.options(t, rules)
	var said strings.Builder
	o.Via, o.Stall, o.Say = ViaAuto, 30*time.Millisecond, func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) }
	s := &storageMigration{o: o, client: o.Servers[0].Dynamic.Resource(migrations), hash: metrics.KeyIDHash("new"), objs: []*underway{{name: "stuck"}}}
	w.svm["stuck"] = map[string]any{"apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration", "metadata": map[string]any{"name": "stuck"}}
	w.manager = false
	if err := s.wait(t.Context(), newMigration(o, "new")); err != nil || !strings.Contains(said.String(), "stuck has not moved for 30ms") {
		t.Errorf("%v, %s", err, said.String())
	}
}

func TestTransientFaultsAreRetried(t *testing.T) {
	w := newWorld("new", "new")
	w.etcd["/registry/secrets/ns/a"] = under("ours", "old")
	calls := 0
	var servers []int
	w.patch = func(server int, _ string) int {
		servers = append(servers, server)
		if calls++; calls < 3 {
			return http.StatusInternalServerError
		}
		return 0
	}
	if _, err := Run(t.Context(), w.options(t, rules)); err != nil {
		t.Fatal(err)
	}
	if len(servers) != 3 || servers[0] == servers[1] {
		t.Errorf("asked %v: a retry goes to the next API server", servers)
	}
}

func TestCanceled(t *testing.T) {
	w := newWorld("new")
	for i := range 200 {
		w.etcd[fmt.Sprintf("/registry/secrets/ns/%d", i)] = under("ours", "old")
	}
	ctx, cancel := context.WithCancel(t.Context())
	w.patch = func(int, string) int { cancel(); return 0 }
	if _, err := Run(ctx, w.options(t, rules)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.patched) > 3*workers {
		t.Errorf("%d objects were written after it was canceled", len(w.patched))
	}
}

// What nobody can tell the operator may answer for.
func TestAllowUnknown(t *testing.T) {
	w := newWorld("new")
	w.planes = 2
	o := w.options(t, rules)
	o.AllowUnknown = true
	if _, err := Run(t.Context(), o); err != nil {
		t.Error(err)
	}
}

func TestWriter(t *testing.T) {
	parse := func(s string) Options {
		c, err := encryptionconfig.Parse([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n" + s))
		if err != nil {
			t.Fatal(err)
		}
		return Options{Encryption: c}
	}
	two := parse(rules + "- {resources: [configmaps], providers: [{kms: {apiVersion: v2, name: other, endpoint: x}}]}\n")
	if _, err := writer(two); err == nil || !strings.Contains(err.Error(), "ours, other") {
		t.Errorf("two writers: %v", err)
	}
	two.Provider = "other"
	if p, err := writer(two); err != nil || p != "other" {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := writer(parse("- {resources: [secrets], providers: [{identity: {}}, {kms: {apiVersion: v2, name: a, endpoint: x}}]}")); err == nil {
		t.Error("a provider that only reads is taken")
	}
}

func TestLocate(t *testing.T) {
	m := newMigration(Options{Prefix: "/registry", QPS: 1}, "k")
	m.versions = map[stored.GroupResource]found{{Group: "apps", Resource: "deployments"}: {version: "v1"}, {Group: "example.com", Resource: "widgets"}: {version: "v2"}}
	for key, want := range map[string]string{
		"/registry/secrets/ns/a": "/v1/secrets ns a", "/registry/minions/n1": "/v1/nodes  n1", "/registry/services/specs/ns/s": "/v1/services ns s",
		"/registry/deployments/ns/d": "apps/v1/deployments ns d", "/registry/example.com/widgets/ns/w": "example.com/v2/widgets ns w", "/registry/example.com/widgets/w": "example.com/v2/widgets  w",
	} {
		got, err := m.locate(t.Context(), stored.ParseKey([]byte(key), "/registry"), []byte(key))
		r := got.resource
		if s := fmt.Sprintf("%s/%s/%s %s %s", r.Group, r.Version, r.Resource, got.namespace, got.name); err != nil || s != want {
			t.Errorf("%s: %q, %v, want %q", key, s, err, want)
		}
	}
	if _, err := m.locate(t.Context(), stored.ParseKey([]byte("/registry/secrets/a/b/c"), "/registry"), []byte("/registry/secrets/a/b/c")); err == nil {
		t.Error("a key of three segments is taken")
	}
}

func TestPace(t *testing.T) {
	p := newPace(100)
	p.took(time.Second, nil)
	p.took(0, errors.New("x"))
	if got := float64(p.Limit()); got != 25 {
		t.Errorf("after two slow writes %g a second, want 25", got)
	}
	p.took(0, apierrors.NewNotFound(target{}.resource.GroupResource(), "x"))
	if got := float64(p.Limit()); got != 27 {
		t.Errorf("after a good one %g, want 27", got)
	}
	for range 100 {
		p.took(time.Second, nil)
	}
	if got := float64(p.Limit()); got != 1 {
		t.Errorf("at least %g, want 1", got)
	}
	for range 1000 {
		p.took(0, nil)
	}
	if got := float64(p.Limit()); got != 100 {
		t.Errorf("at most %g, want 100", got)
	}
}

// A label is not a name: the proof must be under the key that was asked for.
func TestRemainingChecksTheName(t *testing.T) {
	parsed, problems := config.Parse([]byte(`apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: c
socket: {path: /run/k.sock}
stateDir: /var/lib/k
keys: [{name: next, role: write, localfile: {path: /etc/next}}, {name: prod, role: read, localfile: {path: /etc/prod}}]
`))
	if p := problems.Fatal(); len(p) > 0 {
		t.Fatal(p)
	}
	o := Options{Provider: "ours", Target: "next", Names: coverage.NewNames(parsed, time.Now())}
	for name, want := range map[string]string{"next": "", "prod": `is of key "prod", not "next"`, "": "do not prove a name"} {
		left := remaining(&coverage.Report{Keys: []coverage.Key{{KeyID: "next:1", Name: name, Current: true}}}, o)
		if (want == "") != (len(left) == 0) || !strings.Contains(strings.Join(left, ""), want) {
			t.Errorf("%q: %q, want %q", name, left, want)
		}
	}
}
