package kube

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func kubeconfig(t *testing.T, h http.HandlerFunc) (path, url string) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
"users":[{"name":"u","user":{"token":"t"}}],"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority":%q}}]}`, s.URL, ca)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, s.URL
}

func slices200(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer t" || !strings.HasSuffix(r.URL.Path, "/namespaces/default/endpointslices") {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(body))
	}
}

func TestDiscover(t *testing.T) {
	path, _ := kubeconfig(t, slices200(`{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{},"items":[
{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"a"},"endpoints":[{"addresses":["10.0.0.2"]},{"addresses":["10.0.0.1"]}],"ports":[{"name":"https","port":6443}]},
{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"b"},"endpoints":[{"addresses":["fd00::1"]},{"addresses":["10.0.0.1"]}],"ports":[{"name":"https","port":6443}]}]}`))
	servers, err := Connect(t.Context(), Config{Kubeconfig: path})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range servers {
		names = append(names, s.Name)
	}
	if want := []string{"10.0.0.1:6443", "10.0.0.2:6443", "[fd00::1]:6443"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
}

func TestConnectFails(t *testing.T) {
	path, url := kubeconfig(t, slices200(`{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{},"items":[]}`))
	for name, tt := range map[string]struct {
		c    Config
		want string
	}{
		"no endpoints":   {Config{Kubeconfig: path}, "no endpoints"},
		"no kubeconfig":  {Config{Kubeconfig: path + "x"}, "no such file"},
		"no context":     {Config{Kubeconfig: path, Context: "x"}, `"x"`},
		"no https":       {Config{Kubeconfig: path, Servers: []string{"10.0.0.1:6443"}}, "https://host:port"},
		"a path":         {Config{Kubeconfig: path, Servers: []string{url + "/api"}}, "https://host:port"},
		"the same twice": {Config{Kubeconfig: path, Servers: []string{url, url}}, "twice"},
		"forbidden": {Config{Kubeconfig: func() string {
			p, _ := kubeconfig(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) })
			return p
		}()}, "find the others"},
	} {
		if _, err := Connect(t.Context(), tt.c); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
