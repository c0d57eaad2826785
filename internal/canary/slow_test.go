package canary

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"kms-plugin.io/internal/kube"
)

// RoundTrip lets a server answer without a network, so that time can be virtual.
func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Result(), nil
}

// What takes longer than Slow is named with the server, what it did and how long that took;
// it is no problem. What takes just that long is not slow.
func TestWhatIsSlowIsNamed(t *testing.T) {
	for name, tt := range map[string]struct {
		takes time.Duration
		slow  time.Duration
		which func(r *http.Request) bool
		want  []string
	}{
		"to write":     {1500 * time.Millisecond, time.Second, func(r *http.Request) bool { return r.Method == http.MethodPost }, []string{"b to write took 1.5 s"}},
		"to read":      {2 * time.Second, time.Second, func(r *http.Request) bool { return reads(r) && r.URL.RawQuery == "" }, []string{"b to read what a wrote took 2.0 s", "b to read what b wrote took 2.0 s"}},
		"in its cache": {3 * time.Second, time.Second, func(r *http.Request) bool { return reads(r) && r.URL.RawQuery != "" }, []string{"b to have in its watch cache what a wrote took 3.0 s", "b to have in its watch cache what b wrote took 3.0 s"}},
		"just as long": {time.Second, time.Second, reads, nil},
		"nobody asked": {9 * time.Second, 0, reads, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, servers := three()
			servers[1].fail = func(r *http.Request) int {
				if tt.which(r) {
					time.Sleep(tt.takes)
				}
				return 0
			}
			o := Options{Namespace: "kube-system", Timeout: 10 * time.Second, Slow: tt.slow}
			for i, s := range servers[:2] {
				d, err := dynamic.NewForConfigAndClient(&rest.Config{Host: "https://x", QPS: -1}, &http.Client{Transport: s})
				if err != nil {
					t.Fatal(err)
				}
				o.Writers = append(o.Writers, &kube.Server{Name: string(rune('a' + i)), Dynamic: d})
			}
			o.Readers = o.Writers
			if r := Run(t.Context(), o); !r.Passed() || !slices.Equal(r.Slow, tt.want) {
				t.Errorf("%s: slow %q, want %q; problems %q", name, r.Slow, tt.want, r.Problems)
			}
		})
	}
}

func reads(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/kms-canary-")
}
