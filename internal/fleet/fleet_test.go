package fleet

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/metrics"
)

// answers is what an API server says at each path.
type answers map[string]string

func server(t *testing.T, a answers) *kube.Server {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := a[r.URL.Path]
		if !ok {
			http.Error(w, "not served", http.StatusInternalServerError)
			return
		}
		if strings.HasPrefix(body, "{") {
			w.Header().Set("Content-Type", "application/json")
		}
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	dir := t.TempDir()
	ca, config := filepath.Join(dir, "ca"), filepath.Join(dir, "config")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
"users":[{"name":"u","user":{"token":"t"}}],"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority":%q}}]}`, s.URL, ca)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	servers, err := kube.Connect(t.Context(), kube.Config{Kubeconfig: config, Servers: []string{s.URL}})
	if err != nil {
		t.Fatal(err)
	}
	return servers[0]
}

// Names and labels as kube-apiserver 1.37 serves them.
const sample = `# TYPE apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds gauge
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:me",key_id_hash="sha256:old",provider_name="kms1"} 100
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:me",key_id_hash="sha256:new",provider_name="kms1"} 200
apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{apiserver_id_hash="sha256:me",key_id_hash="sha256:other",provider_name="kms2"} 300
# TYPE apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds gauge
apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds{apiserver_id_hash="sha256:me",key_id_hash="sha256:old",provider_name="kms1",transformation_type="to_storage"} 150
apiserver_envelope_encryption_key_id_hash_last_timestamp_seconds{apiserver_id_hash="sha256:me",key_id_hash="sha256:new",provider_name="kms1",transformation_type="from_storage"} 250
# TYPE apiserver_envelope_encryption_key_id_hash_total counter
apiserver_envelope_encryption_key_id_hash_total{apiserver_id_hash="sha256:me",key_id_hash="sha256:old",provider_name="kms1",transformation_type="to_storage"} 7
apiserver_envelope_encryption_key_id_hash_total{apiserver_id_hash="sha256:me",key_id_hash="sha256:old",provider_name="kms1",transformation_type="from_storage"} 9
# TYPE apiserver_encryption_config_controller_last_config_info gauge
apiserver_encryption_config_controller_last_config_info{apiserver_id_hash="sha256:me",hash="sha256:conf"} 1
# TYPE process_start_time_seconds gauge
process_start_time_seconds 50
# TYPE kubernetes_build_info gauge
kubernetes_build_info{git_version="v1.37.2"} 1
`

func TestServers(t *testing.T) {
	got := Servers(t.Context(), []*kube.Server{server(t, answers{"/metrics": sample, "/healthz/kms-providers": "ok"})}, "kms1")[0]
	if got.Error != "" || got.Health != "ok" || got.IDHash != "sha256:me" || got.Config != "sha256:conf" || got.Version != "v1.37.2" || got.Started.Unix() != 50 {
		t.Errorf("%+v", got)
	}
	if got.Seen.Hash != "sha256:new" || got.Seen.At.Unix() != 200 || got.Wrote.Hash != "sha256:old" || got.Writes("sha256:old") != 7 || got.Writes("sha256:new") != 0 {
		t.Errorf("seen %+v, wrote %+v, %d writes", got.Seen, got.Wrote, got.Writes("sha256:old"))
	}
	for name, a := range map[string]answers{"no metrics": {"/healthz/kms-providers": "ok"}, "not metrics": {"/metrics": "{", "/healthz/kms-providers": "ok"}} {
		if got := Servers(t.Context(), []*kube.Server{server(t, a)}, "kms1")[0]; !strings.Contains(got.Error, "read metrics: ") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := Servers(t.Context(), []*kube.Server{server(t, answers{"/metrics": sample})}, "kms1")[0]; !strings.Contains(got.Health, "not served") {
		t.Errorf("an API server that is not content: health %q", got.Health)
	}
}

func leaseList(t *testing.T, renewed map[string]time.Time) string {
	t.Helper()
	items := []any{}
	for name, at := range renewed {
		items = append(items, map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": map[string]any{"name": name, "labels": map[string]any{hostLabel: "host-" + name}},
			"spec": renewal(at)})
	}
	b, err := json.Marshal(map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "LeaseList", "items": items})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// renewal is the spec of a lease; a zero time is none.
func renewal(at time.Time) map[string]any {
	if at.IsZero() {
		return map[string]any{}
	}
	return map[string]any{"renewTime": at.UTC().Format(time.RFC3339Nano)}
}

const leasePath = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"

// An API server that is gone leaves its lease for an hour; clocks that are ahead
// make nobody dead.
func TestIdentities(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		renewed map[string]time.Time
		want    int
	}{
		"two live":           {map[string]time.Time{"a": now, "b": now.Add(-30 * time.Second)}, 2},
		"one is gone":        {map[string]time.Time{"a": now, "b": now.Add(-10 * time.Minute)}, 1},
		"one clock is ahead": {map[string]time.Time{"a": now.Add(time.Hour), "b": now.Add(-5 * time.Second)}, 2},
		"ours is ahead":      {map[string]time.Time{"a": now.Add(-time.Hour), "b": now.Add(-time.Hour - 5*time.Second)}, 2},
		"none":               {nil, 0},
	} {
		got, err := Identities(t.Context(), server(t, answers{leasePath: leaseList(t, tt.renewed)}))
		live := 0
		for _, id := range got {
			if !id.Stale {
				live++
			}
		}
		if err != nil || live != tt.want || len(got) != len(tt.renewed) {
			t.Errorf("%s: %v, %v, want %d", name, got, err, tt.want)
		}
	}
	if _, err := Identities(t.Context(), server(t, answers{})); err == nil || !strings.Contains(err.Error(), "identity leases of API servers: ") {
		t.Errorf("%v", err)
	}
}

const nodePath = "/api/v1/nodes"

func nodeList(names ...string) string {
	var items []string
	for _, n := range names {
		items = append(items, fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q}}`, n))
	}
	return `{"apiVersion":"v1","kind":"NodeList","items":[` + strings.Join(items, ",") + `]}`
}

// Whoever was not asked is named, with what to do about it: one that lives, and one that
// is down and comes back with the configuration it had. What nobody can tell is said.
func TestCount(t *testing.T) {
	me := strings.ReplaceAll(sample, "sha256:me", metrics.KeyIDHash("a"))
	now, before := time.Now(), time.Now().Add(-10*time.Minute)
	for name, tt := range map[string]struct {
		metrics          string
		renewed          map[string]time.Time
		nodes            []string
		problem, unknown string
	}{
		"nobody":                                 {me, map[string]time.Time{"a": now}, []string{"n1"}, "", ""},
		"one lives":                              {me, map[string]time.Time{"a": now, "b": now}, nil, `an API server on host "host-b" lives (lease b) and was not asked: add it to --servers`, ""},
		"one is down":                            {me, map[string]time.Time{"a": now, "b": before}, nil, before.UTC().Format("2006-01-02 15:04:05Z") + ": bring it up, or delete the lease if it is gone for ever: kubectl delete lease -n kube-system b", ""},
		"one never began":                        {me, map[string]time.Time{"a": now, "b": {}}, nil, `API server b on host "host-b" is gone or down: it never renewed its lease`, ""},
		"ours is stale, answers":                 {me, map[string]time.Time{"a": before, "x": before}, nil, `host "host-x"`, ""},
		"no leases":                              {me, nil, nil, "", "the cluster has no identity leases"},
		"it does not tell":                       {"x 1\n", map[string]time.Time{"a": now}, nil, "", "does not tell its identity"},
		"it does not tell, and there are others": {"x 1\n", map[string]time.Time{"a": now, "b": now}, nil, "lives (lease ", "does not tell its identity"},
		"it cannot be asked":                     {"{", map[string]time.Time{"a": now}, nil, "read metrics: ", ""},
		"only another lives":                     {me, map[string]time.Time{"b": now}, nil, "lease b", ""},
		"more nodes":                             {me, map[string]time.Time{"a": now}, []string{"n1", "n2"}, "", "2 control-plane Nodes (n1, n2) and 1 API servers"},
	} {
		_, u := Count(t.Context(), []*kube.Server{server(t, answers{"/metrics": tt.metrics, "/healthz/kms-providers": "ok", leasePath: leaseList(t, tt.renewed), nodePath: nodeList(tt.nodes...)})})
		problem := ""
		for _, p := range u.Problems {
			problem += p.String() + "\n"
		}
		if !strings.Contains(problem, tt.problem) || !strings.Contains(u.Unknown, tt.unknown) || (problem == "") != (tt.problem == "") || (u.Unknown == "") != (tt.unknown == "") {
			t.Errorf("%s: %q, %q", name, problem, u.Unknown)
		}
		if name == "it cannot be asked" && len(u.Problems) != 1 {
			t.Errorf("%s: its own lease is held for a stranger's: %q", name, problem)
		}
	}
}

// The first that answers tells of the others.
func TestCountAsksTheNext(t *testing.T) {
	away := server(t, answers{})
	here := server(t, answers{"/metrics": sample, "/healthz/kms-providers": "ok", leasePath: leaseList(t, map[string]time.Time{"b": time.Now(), "c": time.Now(), "d": time.Now()}), nodePath: nodeList()})
	_, u := Count(t.Context(), []*kube.Server{away, here})
	if len(u.Problems) != 4 || !strings.Contains(u.Problems[0].Text, away.Name) {
		t.Errorf("%+v", u)
	}
}

// A plugin that cannot be asked is named, not left out.
func TestLookKeepsWhoIsAway(t *testing.T) {
	s, err := Look(t.Context(), nil, "kms1", []string{"127.0.0.1:1"})
	if err != nil || len(s.Plugins) != 1 || s.Plugins[0].Error == "" {
		t.Errorf("%+v, %v", s, err)
	}
}

// Two addresses of one API server, as behind a load balancer, hide one that is down.
func TestOneServerTwice(t *testing.T) {
	me := strings.ReplaceAll(sample, "sha256:me", metrics.KeyIDHash("a"))
	a := answers{"/metrics": me, "/healthz/kms-providers": "ok", leasePath: leaseList(t, map[string]time.Time{"a": time.Now()}), nodePath: nodeList("n1", "n2")}
	_, u := Count(t.Context(), []*kube.Server{server(t, a), server(t, a)})
	if len(u.Problems) != 1 || !strings.Contains(u.Problems[0].Text, "are the same API server") {
		t.Errorf("%+v", u)
	}
}
