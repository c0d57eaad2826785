package status_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/metrics"
)

// plugin answers Status with what it is told.
type plugin struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	answer *kmsapi.StatusResponse
	err    error
}

func (p *plugin) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	return p.answer, p.err
}

func healthy() *plugin {
	return &plugin{answer: &kmsapi.StatusResponse{Version: "v2", Healthz: "ok", KeyId: keyID}}
}

// shortDir holds sockets: their paths have at most 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

func serveAt(t *testing.T, path string, p *plugin) string {
	t.Helper()
	ln := listen(t, path)
	srv := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(srv, p)
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(srv.Stop)
	return path
}

func serve(t *testing.T, p *plugin) string {
	t.Helper()
	return serveAt(t, filepath.Join(shortDir(t), "k"), p)
}

// page serves metrics and gives their address.
func page(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func text(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(s))
	})
}

var good = time.Date(2026, 11, 30, 12, 0, 0, 123e6, time.UTC)

// daemon is what the daemon really exports.
func daemon(t *testing.T, ready bool) http.Handler {
	t.Helper()
	reg := prometheus.NewRegistry()
	m := metrics.New(reg, "v1.2.3")
	m.SetReady(ready)
	m.DiskDiffers(!ready)
	m.SetLocalKEKs([]string{"00", "01"})
	m.SetKeys([]metrics.Key{{Name: "prod", Wrap: "ok", Unwrap: "degraded", LastGood: good}, {Name: "lab", Wrap: "unknown", Unwrap: "closed"}})
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return mux
}

// mustRefuse demands an error of one line and its hint.
func mustRefuse(t *testing.T, what string, err error, text, hint string) {
	t.Helper()
	var h interface{ Hint() string }
	switch {
	case err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n"):
		t.Errorf("%s: Ask = %v, want one line with %q", what, err, text)
	case !errors.As(err, &h) || !strings.Contains(h.Hint(), hint):
		t.Errorf("%s: %v has not the hint %q", what, err, hint)
	}
}
