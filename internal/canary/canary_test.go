package canary

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
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"kms-plugin.io/internal/kube"
)

// cluster is what API servers of one etcd have in common.
type cluster struct {
	mu      sync.Mutex
	objects map[string]map[string]any
	n       int
}

// server is an API server that knows Secrets, and how to fail.
type server struct {
	*cluster
	fail   func(r *http.Request) int // status code; 0 is none
	change func(object map[string]any)
}

const collection = "/api/v1/namespaces/kube-system/secrets"

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		if code := s.fail(r); code != 0 {
			reply(w, code, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "made to fail"})
			return
		}
	}
	name := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, collection), "/")
	object := s.objects[name]
	switch {
	case r.Method == http.MethodPost && name == "":
		var in map[string]any
		_ = json.NewDecoder(r.Body).Decode(&in)
		meta := in["metadata"].(map[string]any)
		s.n++
		meta["resourceVersion"], meta["uid"], meta["creationTimestamp"] = fmt.Sprint(s.n), fmt.Sprint("u", s.n), time.Now().UTC().Format(time.RFC3339)
		s.objects[meta["name"].(string)] = in
		reply(w, http.StatusCreated, in)
	case r.Method == http.MethodGet && name == "":
		items := []any{}
		for _, n := range slices.Sorted(maps.Keys(s.objects)) {
			items = append(items, s.objects[n])
		}
		reply(w, http.StatusOK, map[string]any{"kind": "SecretList", "apiVersion": "v1", "metadata": map[string]any{}, "items": items})
	case object == nil:
		reply(w, http.StatusNotFound, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
	case r.Method == http.MethodDelete:
		delete(s.objects, name)
		reply(w, http.StatusOK, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"})
	default:
		if s.change != nil {
			s.change(object)
		}
		reply(w, http.StatusOK, object)
	}
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func connect(t *testing.T, servers ...*server) []*kube.Server {
	t.Helper()
	var urls []string
	var ca []byte
	for _, s := range servers {
		h := httptest.NewTLSServer(s)
		t.Cleanup(h.Close)
		urls = append(urls, h.URL)
		ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
"users":[{"name":"u","user":{"token":"t"}}],"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority":%q}}]}`, urls[0], filepath.Join(dir, "ca"))
	path := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := kube.Connect(t.Context(), kube.Config{Kubeconfig: path, Servers: urls})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func field(num protowire.Number, v string) string {
	return string(protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte(v)))
}

func valueUnder(keyID string) string {
	return "k8s:enc:kms:v2:ours:" + field(1, "d") + field(2, keyID) + field(3, "s")
}

func newRun(t *testing.T, servers ...*server) Options {
	s := connect(t, servers...)
	return Options{Namespace: "kube-system", Writers: s, Readers: s, Prefix: "/registry", Timeout: 10 * time.Second}
}

func three() (*cluster, []*server) {
	c := &cluster{objects: map[string]map[string]any{}}
	return c, []*server{{cluster: c}, {cluster: c}, {cluster: c}}
}

func TestAllIsWell(t *testing.T) {
	c, servers := three()
	c.objects["other"] = map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "other", "creationTimestamp": time.Now().UTC().Format(time.RFC3339)}}
	c.objects["left"] = map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "left", "uid": "u", "creationTimestamp": time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)}}
	o := newRun(t, servers...)
	asked := []string{}
	o.Etcd = func(_ context.Context, key string) ([]byte, error) {
		asked = append(asked, key)
		return []byte(valueUnder("id")), nil
	}
	o.Provider, o.KeyID = "ours", "id"
	r := Run(t.Context(), o)
	if !r.Passed() || len(r.Writes) != 3 || len(r.Writes[2].Reads) != 3 || !r.Writes[2].Reads[1].OK || r.Writes[0].KeyID != "id" || r.Removed != 1 {
		t.Errorf("%+v", r)
	}
	if len(asked) != 3 || !strings.HasPrefix(asked[0], "/registry/secrets/kube-system/kms-canary-") {
		t.Errorf("etcd was asked for %q", asked)
	}
	if _, there := c.objects["other"]; !there || len(c.objects) != 1 {
		t.Errorf("left in the cluster: %v", c.objects)
	}
}

func TestWhatIsWrong(t *testing.T) {
	only := func(method, query string) func(*http.Request) int {
		return func(r *http.Request) int {
			if r.Method == method && strings.Contains(r.URL.RawQuery, query) && strings.Contains(r.URL.Path, "/secrets/kms-canary-") == (method != http.MethodPost) {
				return http.StatusInternalServerError
			}
			return 0
		}
	}
	etcd := func(values ...string) func(context.Context, string) ([]byte, error) {
		i := -1
		return func(context.Context, string) ([]byte, error) {
			i++
			if v := values[i%len(values)]; v != "" {
				return []byte(v), nil
			}
			return nil, nil
		}
	}
	for name, tt := range map[string]struct {
		change func(s *server)
		etcd   func(context.Context, string) ([]byte, error)
		want   string
	}{
		"does not write":         {func(s *server) { s.fail = only(http.MethodPost, "") }, nil, "does not write"},
		"does not read":          {func(s *server) { s.fail = only(http.MethodGet, "") }, nil, "does not read what"},
		"cache does not follow":  {func(s *server) { s.fail = only(http.MethodGet, "resourceVersion=") }, nil, "watch cache"},
		"reads something else":   {func(s *server) { s.change = func(o map[string]any) { o["data"] = map[string]any{"canary": "eA=="} } }, nil, "another value"},
		"does not remove":        {func(s *server) { s.fail = only(http.MethodDelete, "") }, nil, "left behind"},
		"plain":                  {nil, etcd("k8s\x00"), "PLAIN TEXT"},
		"broken":                 {nil, etcd("k8s:enc:kms:v2:ours:\xff"), "cannot be read"},
		"aescbc":                 {nil, etcd("k8s:enc:aescbc:v1:k:" + strings.Repeat("x", 32)), `aescbc "k", not with KMS v2`},
		"another etcd":           {nil, etcd(""), "is --prefix right"},
		"another provider":       {nil, etcd(strings.Replace(valueUnder("id"), "ours", "theirs", 1)), `provider "theirs"`},
		"another key_id":         {nil, etcd(valueUnder("id2")), `key_id "id2"`},
		"key_ids differ":         {nil, etcd(valueUnder("id"), valueUnder("id2")), "under \"id2\""},
		"etcd cannot be reached": {nil, func(context.Context, string) ([]byte, error) { return nil, errors.New("refused") }, "etcd: refused"},
	} {
		_, servers := three()
		if tt.change != nil {
			tt.change(servers[1])
		}
		o := newRun(t, servers...)
		o.Etcd, o.Provider, o.KeyID = tt.etcd, "ours", "id"
		r := Run(t.Context(), o)
		if r.Passed() || !slices.ContainsFunc(r.Problems, func(p string) bool { return strings.Contains(p, tt.want) }) {
			t.Errorf("%s: %q, want %q", name, r.Problems, tt.want)
		}
	}
}

// One that is interrupted still cleans up.
func TestInterrupted(t *testing.T) {
	c, servers := three()
	ctx, cancel := context.WithCancel(t.Context())
	servers[0].fail = func(r *http.Request) int {
		if r.Method == http.MethodGet {
			cancel()
		}
		return 0
	}
	if r := Run(ctx, newRun(t, servers...)); r.Passed() {
		t.Error("an interrupted run passes")
	}
	if len(c.objects) != 0 {
		t.Errorf("left in the cluster: %v", c.objects)
	}
}

func TestOutput(t *testing.T) {
	r := &Report{At: time.Unix(1700000000, 0).UTC(), Slow: []string{"a took 3 s"}, Problems: []string{"two\nlines"}, Writes: []Write{
		{Server: "a:1", Written: true, Seconds: 0.5, Provider: "p", KeyID: "id", Reads: []Read{{"b:2", true, 0.25, 0.5}, {"c:3", false, 1, 0}}},
		{Server: "b:2"},
	}}
	const want = `# HELP kms_canary_last_run_timestamp_seconds When kmsctl canary last ran.
# TYPE kms_canary_last_run_timestamp_seconds gauge
kms_canary_last_run_timestamp_seconds 1700000000
# HELP kms_canary_passed 1 if the last run of kmsctl canary found nothing wrong.
# TYPE kms_canary_passed gauge
kms_canary_passed 0
# HELP kms_canary_write_seconds How long the API server took to write a Secret; -1 if it did not.
# TYPE kms_canary_write_seconds gauge
kms_canary_write_seconds{writer="a:1"} 0.5
kms_canary_write_seconds{writer="b:2"} -1
# HELP kms_canary_read_seconds How long the reader took until its watch cache had what the writer wrote; -1 if it does not read it.
# TYPE kms_canary_read_seconds gauge
kms_canary_read_seconds{writer="a:1",reader="b:2"} 0.75
kms_canary_read_seconds{writer="a:1",reader="c:3"} -1
`
	if got := string(r.Textfile()); got != want {
		t.Errorf("%s", got)
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\w+) (\w+)$`).FindAllStringSubmatch(want, -1) {
		if row := fmt.Sprintf("| `%s` | %s |", m[1], m[2]); !strings.Contains(string(doc), row) {
			t.Errorf("docs/metrics.md has no %q", row)
		}
	}
	var b strings.Builder
	if err := r.Print(&b); err != nil || b.String() != "a:1: written in 0.500 s, read by 1 of 2, provider \"p\", key_id \"id\"\nb:2: written in 0.000 s, read by 0 of 0\nslow: a took 3 s\nFAIL  two lines\n" {
		t.Errorf("%s%v", b.String(), err)
	}
}
