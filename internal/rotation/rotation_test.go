package rotation

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/stored"
)

// world is an etcd and API servers that store Secrets and widgets in it.
type world struct {
	mu      sync.Mutex
	etcd    map[string]string
	objects map[string]map[string]any
	keyIDs  []string // what each API server writes under
	patch   func(server int, key string) int
	patched []string
	scans   int
	onScan  func(w *world, n int)
}

func field(num protowire.Number, v string) string {
	return string(protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte(v)))
}

func under(provider, keyID string) string {
	return "k8s:enc:kms:v2:" + provider + ":" + field(1, "d") + field(2, keyID) + field(3, "s")
}

func (w *world) Scan(_ context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	w.mu.Lock()
	w.scans++
	if w.onScan != nil {
		w.onScan(w, w.scans)
	}
	copied := maps.Clone(w.etcd)
	w.mu.Unlock()
	visit, err := begin(etcdstore.Info{Revision: int64(w.scans), Keys: int64(len(copied))})
	if err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(copied)) {
		if err := visit(etcdstore.KV{Key: []byte(k), Value: []byte(copied[k]), ModRevision: int64(w.scans)}); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) handler(i int) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		code, out := w.serve(i, r)
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(code)
		_ = json.NewEncoder(rw).Encode(out)
	}
}

func failure(code int, reason metav1.StatusReason) (int, any) {
	return code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: "made to fail"}
}

func (w *world) serve(i int, r *http.Request) (int, any) {
	if r.URL.Path == "/apis/example.com" {
		return http.StatusOK, metav1.APIGroup{TypeMeta: metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}, PreferredVersion: metav1.GroupVersionForDiscovery{GroupVersion: "example.com/v7", Version: "v7"}}
	}
	path, isSecret := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/")
	key := "/registry/secrets/" + strings.Replace(path, "/secrets", "", 1)
	if !isSecret {
		path, ok := strings.CutPrefix(r.URL.Path, "/apis/example.com/v7/widgets/")
		if !ok {
			return http.StatusOK, map[string]any{}
		}
		key = "/registry/example.com/widgets/" + path
	}
	switch r.Method {
	case http.MethodPost:
		var in map[string]any
		_ = json.NewDecoder(r.Body).Decode(&in)
		meta := in["metadata"].(map[string]any)
		meta["resourceVersion"] = "1"
		key += "/" + meta["name"].(string)
		w.etcd[key], w.objects[key] = under("ours", w.keyIDs[i]), in
		return http.StatusCreated, in
	case http.MethodDelete:
		delete(w.etcd, key)
		return http.StatusOK, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"}
	case http.MethodPatch:
		if w.etcd[key] == "" {
			return failure(http.StatusNotFound, metav1.StatusReasonNotFound)
		}
		if w.patch != nil {
			if code := w.patch(i, key); code == http.StatusOK {
				return http.StatusOK, map[string]any{"kind": "Secret", "apiVersion": "v1"} // without a write
			} else if code != 0 {
				return failure(code, "")
			}
		}
		w.etcd[key] = under("ours", w.keyIDs[i])
		w.patched = append(w.patched, key)
		return http.StatusOK, map[string]any{"kind": "Secret", "apiVersion": "v1"}
	}
	if w.objects[key] == nil {
		return http.StatusOK, map[string]any{"kind": "SecretList", "apiVersion": "v1", "items": []any{}}
	}
	return http.StatusOK, w.objects[key]
}

func newWorld(keyIDs ...string) *world {
	return &world{etcd: map[string]string{}, objects: map[string]map[string]any{}, keyIDs: keyIDs}
}

func (w *world) options(t *testing.T, rules string) Options {
	t.Helper()
	c, err := encryptionconfig.Parse([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n" + rules))
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Source: w, Encryption: c, Prefix: "/registry", Namespace: "ns", QPS: 10_000, Poll: time.Millisecond, Wait: 50 * time.Millisecond,
		Say: func(format string, args ...any) { t.Logf(format, args...) },
		Etcd: func(_ context.Context, key string) ([]byte, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return []byte(w.etcd[key]), nil
		}}
	var urls []string
	var ca []byte
	for i := range w.keyIDs {
		s := httptest.NewTLSServer(w.handler(i))
		t.Cleanup(s.Close)
		urls, ca = append(urls, s.URL), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	}
	dir := t.TempDir()
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
"users":[{"name":"u","user":{"token":"t"}}],"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority":%q}}]}`, urls[0], dir+"/ca")
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "ca"), ca, 0o600), os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	if o.Servers, err = kube.Connect(t.Context(), kube.Config{Kubeconfig: filepath.Join(dir, "config"), Servers: urls}); err != nil {
		t.Fatal(err)
	}
	return o
}

const rules = `- {resources: [secrets, widgets.example.com], providers: [{kms: {apiVersion: v2, name: ours, endpoint: x}}, {identity: {}}]}
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
		"broken":           {[]string{"new"}, func(w *world, _ *Options) { w.etcd["/registry/configmaps/ns/b"] = "k8s:enc:x" }, "configmaps: 0 older, 0 of other providers, 0 plain, 1 broken"},
		"no such provider": {[]string{"new"}, func(_ *world, o *Options) { o.Provider = "theirs" }, `"theirs" writes nothing`},
		"another key meanwhile": {[]string{"new"}, func(w *world, _ *Options) {
			w.onScan = func(w *world, n int) {
				if n == 2 {
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
	m.versions = map[string]string{"apps": "v1", "example.com": "v2"}
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
