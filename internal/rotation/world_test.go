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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/metrics"
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
	compact int      // after so many patches a revision is gone; 0 is never
	hosts   []string // of API servers that live, beside those that are asked
	down    []string // hosts of API servers that left a lease behind
	configs []string // hash of the EncryptionConfiguration of each API server
	planes  int      // Nodes of the control plane
	manager bool     // kube-controller-manager lives and works migrations off
	skip    string   // a resource that it leaves out though it says that it succeeded
	fails   bool     // every migration fails
	svm     map[string]map[string]any
	renewal int
}

func field(num protowire.Number, v string) string {
	return string(protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte(v)))
}

func under(provider, keyID string) string {
	return "k8s:enc:kms:v2:" + provider + ":" + field(1, "d") + field(2, keyID) + field(3, "s")
}

func (w *world) handler(i int) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if r.URL.Path == "/metrics" {
			fmt.Fprint(rw, w.metrics(i))
			return
		}
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
		return http.StatusOK, metav1.APIGroup{TypeMeta: metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}, PreferredVersion: metav1.GroupVersionForDiscovery{GroupVersion: "example.com/v9", Version: "v9"},
			Versions: []metav1.GroupVersionForDiscovery{{GroupVersion: "example.com/v9", Version: "v9"}, {GroupVersion: "example.com/v7", Version: "v7"}}}
	}
	if version, ok := strings.CutPrefix(r.URL.Path, "/apis/example.com/"); ok && !strings.Contains(version, "/") {
		list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, APIResources: []metav1.APIResource{{Name: "gadgets"}}}
		if version == "v7" { // the preferred one does not serve widgets
			list.APIResources = append(list.APIResources, metav1.APIResource{Name: "widgets"})
		}
		return http.StatusOK, list
	}
	if code, out := w.serveMigration(r); code != 0 {
		return code, out
	}
	path, isSecret := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/")
	key := "/registry/secrets/" + strings.Replace(path, "/secrets", "", 1)
	if namespace, name, isEvent := strings.Cut(path, "/events/"); isSecret && isEvent {
		key = "/registry/events/" + namespace + "/" + name
	}
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
			} else if code == http.StatusForbidden {
				return failure(code, metav1.StatusReasonForbidden)
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
	return &world{etcd: map[string]string{}, objects: map[string]map[string]any{}, keyIDs: keyIDs, svm: map[string]map[string]any{}}
}

func (w *world) options(t *testing.T, rules string) Options {
	t.Helper()
	c, err := encryptionconfig.Parse([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n" + rules))
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Source: w, Encryption: c, Prefix: "/registry", Namespace: "ns", QPS: 10_000, Poll: time.Millisecond, Wait: 100 * time.Millisecond, Via: ViaPatch,
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

// metrics are those of an API server, as far as they tell who it is and what it wrote.
func (w *world) metrics(i int) string {
	labels := fmt.Sprintf(`provider_name="ours",key_id_hash=%q,apiserver_id_hash=%q`, metrics.KeyIDHash(w.keyIDs[i]), metrics.KeyIDHash(fmt.Sprintf("apiserver-%d", i)))
	return fmt.Sprintf("apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{%s} 1.7e9\n"+
		"# TYPE apiserver_envelope_encryption_key_id_hash_total counter\napiserver_envelope_encryption_key_id_hash_total{%s,transformation_type=\"to_storage\"} %d\n", labels, labels, len(w.patched)) + w.config(i)
}

func (w *world) config(i int) string {
	if len(w.configs) == 0 {
		return ""
	}
	return fmt.Sprintf("# TYPE apiserver_encryption_config_controller_last_config_info gauge\napiserver_encryption_config_controller_last_config_info{apiserver_id_hash=%q,hash=%q} 1\n", metrics.KeyIDHash(fmt.Sprintf("apiserver-%d", i)), w.configs[i])
}

// serveMigration answers about leases and migrations, like kube-controller-manager
// at every look at one of them. It answers 0 to anything else.
func (w *world) serveMigration(r *http.Request) (int, any) {
	const api = "/apis/storagemigration.k8s.io/v1/storageversionmigrations"
	name, isOne := strings.CutPrefix(r.URL.Path, api+"/")
	switch {
	case strings.HasSuffix(r.URL.Path, "/leases/kube-controller-manager"):
		if w.manager {
			w.renewal++
		}
		return http.StatusOK, map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": map[string]any{"renewTime": time.Unix(int64(w.renewal), 0).UTC().Format(time.RFC3339)}}
	case strings.HasSuffix(r.URL.Path, "/kube-system/leases"):
		items := []any{}
		for i := range w.keyIDs {
			items = append(items, identityLease(fmt.Sprintf("apiserver-%d", i), "asked", time.Now()))
		}
		for _, h := range w.hosts {
			items = append(items, identityLease("apiserver-of-"+h, h, time.Now()))
		}
		for _, h := range w.down {
			items = append(items, identityLease("apiserver-of-"+h, h, time.Now().Add(-5*time.Minute)))
		}
		return http.StatusOK, map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "LeaseList", "items": items}
	case r.URL.Path == "/api/v1/nodes":
		return http.StatusOK, map[string]any{"apiVersion": "v1", "kind": "NodeList", "items": w.nodes()}
	case r.URL.Path == api && r.Method == http.MethodPost:
		var in map[string]any
		_ = json.NewDecoder(r.Body).Decode(&in)
		meta := in["metadata"].(map[string]any)
		meta["name"] = fmt.Sprintf("%s%d", meta["generateName"], len(w.svm))
		w.svm[meta["name"].(string)] = in
		return http.StatusCreated, in
	case r.URL.Path == api && r.Method == http.MethodDelete:
		clear(w.svm)
		return http.StatusOK, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Success"}
	case r.URL.Path == api:
		return http.StatusOK, map[string]any{"apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigrationList", "items": slices.Collect(maps.Values(w.svm))}
	case isOne && w.svm[name] == nil:
		return failure(http.StatusNotFound, metav1.StatusReasonNotFound)
	case isOne:
		w.migrate(w.svm[name])
		return http.StatusOK, w.svm[name]
	}
	return 0, nil
}

func (w *world) nodes() []any {
	out := []any{}
	for i := range w.planes {
		out = append(out, map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": fmt.Sprintf("cp%d", i)}})
	}
	return out
}

func identityLease(name, host string, at time.Time) map[string]any {
	return map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": map[string]any{"name": name, "labels": map[string]any{"kubernetes.io/hostname": host}},
		"spec": map[string]any{"renewTime": at.UTC().Format(time.RFC3339Nano)}}
}

// migrate is one turn of the controller: Running, then done.
func (w *world) migrate(svm map[string]any) {
	if !w.manager {
		return
	}
	condition := func(name, message string) map[string]any {
		return map[string]any{"type": name, "status": "True", "message": message}
	}
	if svm["status"] == nil {
		svm["status"] = map[string]any{"resourceVersion": "1", "conditions": []any{condition("Running", "runs")}}
		return
	}
	status := svm["status"].(map[string]any)
	if w.fails {
		status["conditions"] = append(status["conditions"].([]any), condition("Failed", "made to fail"))
		return
	}
	resource := svm["spec"].(map[string]any)["resource"].(map[string]any)["resource"].(string)
	for key := range w.etcd {
		if strings.Contains(key, "/"+resource+"/") && resource != w.skip {
			w.etcd[key] = under("ours", w.keyIDs[0])
		}
	}
	status["conditions"] = append(status["conditions"].([]any), condition("Succeeded", "Migration completed"))
}
