package status_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/status"
)

const (
	keyID = "prod:0123456789abcdef0123456789abcdef"
	// printf %s KEY_ID | sha256sum
	keyIDHash = "sha256:8d6dd9746d478ad5a2cb151a476f2cfa4431cbeed01291f313c85d0b1e3b68b7"
)

func TestHealthyPlugin(t *testing.T) {
	socket := serve(t, healthy())
	r, err := status.Ask(t.Context(), socket, page(t, daemon(t, true)))
	if err != nil {
		t.Fatal(err)
	}
	want := status.Report{Socket: socket, Healthy: true, Version: "v2", Healthz: "ok", KeyID: keyID, KeyIDHash: keyIDHash,
		Plugin: &status.Plugin{Ready: true, LocalKEKs: 2, LocalKEKIDs: []string{"00", "01"}, Version: "v1.2.3", Keys: []status.Key{
			{Name: "lab", Wrap: "unknown", Unwrap: "closed"}, {Name: "prod", Wrap: "ok", Unwrap: "degraded", LastGood: &good}}}}
	if d := cmp.Diff(want, r, cmpopts.IgnoreFields(status.Report{}, "LatencyMS")); d != "" {
		t.Errorf("report (-want +got):\n%s", d)
	}
	if r.LatencyMS <= 0 || r.LatencyMS > 3000 {
		t.Errorf("latency %v ms", r.LatencyMS)
	}
}

// Status is ok by the key_id that is remembered, and nothing could be sealed.
func TestNotReadyIsNotHealthy(t *testing.T) {
	r, err := status.Ask(t.Context(), serve(t, healthy()), page(t, daemon(t, false)))
	if err != nil || r.Healthy || r.Error != "" || r.Plugin.Ready {
		t.Errorf("Ask = %+v, %v", r, err)
	}
}

func TestWithoutMetrics(t *testing.T) {
	r, err := status.Ask(t.Context(), serve(t, healthy()), "")
	if err != nil || !r.Healthy || r.Plugin != nil {
		t.Errorf("Ask = %+v, %v", r, err)
	}
}

func TestUnhealthyPlugin(t *testing.T) {
	for _, c := range []struct {
		name      string
		plugin    *plugin
		err, hash string
	}{
		{"error", &plugin{err: grpcstatus.Error(codes.PermissionDenied, `key "prod" is closed`)}, `PermissionDenied: key "prod" is closed`, ""},
		{"healthz", &plugin{answer: &kmsapi.StatusResponse{Version: "v2", Healthz: "bad", KeyId: keyID}}, "", keyIDHash},
		{"version", &plugin{answer: &kmsapi.StatusResponse{Version: "v2beta1", Healthz: "ok", KeyId: keyID}}, "", keyIDHash},
		{"no service", &plugin{err: grpcstatus.Error(codes.Unimplemented, "no")}, "Unimplemented: no", ""},
	} {
		r, err := status.Ask(t.Context(), serve(t, c.plugin), page(t, daemon(t, false)))
		if err != nil || r.Healthy || r.Error != c.err || r.KeyIDHash != c.hash {
			t.Errorf("%s: Ask = %+v, %v; want an unhealthy report with error %q", c.name, r, err, c.err)
		}
		if r.Plugin == nil || r.Plugin.Ready || !r.Plugin.DiskDiffers {
			t.Errorf("%s: the plugin's own view is %+v", c.name, r.Plugin)
		}
	}
	r, err := status.Ask(t.Context(), serve(t, &plugin{answer: &kmsapi.StatusResponse{Version: "v2", Healthz: "ok"}}), "")
	if err != nil || r.Healthy {
		t.Errorf("without key_id: Ask = %+v, %v; want unhealthy", r, err)
	}
}

func TestUnreachable(t *testing.T) {
	dir := shortDir(t)
	file, dead := filepath.Join(dir, "file"), filepath.Join(dir, "dead")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ln := listen(t, dead)
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = ln.Close()
	for _, c := range []struct{ name, socket, text, hint string }{
		{"missing", filepath.Join(dir, "none"), "there is no socket", "is the plugin running"},
		{"file", file, "is not a socket", "give socket.path"},
		{"directory", dir, "is not a socket", "give socket.path"},
		{"dead", dead, "nobody serves socket", "start the plugin"},
		{"empty", "", "there is no socket", "is the plugin running"},
	} {
		begun := time.Now()
		r, err := status.Ask(t.Context(), c.socket, "")
		mustRefuse(t, c.name, err, c.text, c.hint)
		if err != nil && !strings.Contains(err.Error(), `"`+c.socket+`"`) {
			t.Errorf("%s: %v does not name the socket", c.name, err)
		}
		if r.Healthy || time.Since(begun) > 2*time.Second {
			t.Errorf("%s: healthy %t after %s", c.name, r.Healthy, time.Since(begun))
		}
	}
}

// A path is a path, whatever a URL would make of its characters.
func TestSocketPaths(t *testing.T) {
	t.Chdir(shortDir(t))
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "with space", "per%41cent", "per%zzcent", "ques?tion", "ha#sh", "co:lon"} {
		serveAt(t, filepath.Join(dir, name), healthy())
		t.Run("absolute "+name, func(t *testing.T) {
			if r, err := status.Ask(t.Context(), filepath.Join(dir, name), ""); err != nil || !r.Healthy {
				t.Errorf("Ask = %+v, %v", r, err)
			}
		})
		t.Run("relative "+name, func(t *testing.T) {
			if r, err := status.Ask(t.Context(), name, ""); err != nil || !r.Healthy {
				t.Errorf("Ask = %+v, %v", r, err)
			}
		})
	}
}

// Another server on the socket is no plugin, and says so in time.
func TestSocketOfAnotherServer(t *testing.T) {
	for name, serve := range map[string]func(net.Conn){
		"hangs up":   func(c net.Conn) { _ = c.Close() },
		"talks HTTP": func(c net.Conn) { _, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")); _ = c.Close() },
	} {
		ln := listen(t, filepath.Join(shortDir(t), "k"))
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				serve(c)
			}
		}()
		r, err := status.Ask(t.Context(), ln.Addr().String(), "")
		if err != nil || r.Healthy || !strings.HasPrefix(r.Error, "Unavailable: ") {
			t.Errorf("%s: Ask = %+v, %v; want the report Unavailable", name, r, err)
		}
	}
}

// silent accepts and never answers.
func silent(t *testing.T, network, address string) string {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.Addr().String() // the kernel accepts
}

// Both questions end by themselves after what kube-apiserver would wait.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	within := func(t *testing.T, begun time.Time, least, most time.Duration) {
		t.Helper()
		if d := time.Since(begun); d < least || d > most {
			t.Errorf("it took %s, want %s to %s", d, least, most)
		}
	}
	t.Run("socket", func(t *testing.T) {
		t.Parallel()
		begun := time.Now()
		r, err := status.Ask(context.Background(), silent(t, "unix", filepath.Join(shortDir(t), "k")), "")
		if err != nil || r.Healthy || !strings.HasPrefix(r.Error, "DeadlineExceeded: ") {
			t.Errorf("Ask = %+v, %v", r, err)
		}
		within(t, begun, 3*time.Second, 10*time.Second)
	})
	t.Run("metrics", func(t *testing.T) {
		t.Parallel()
		begun := time.Now()
		r, err := status.Ask(context.Background(), serve(t, healthy()), silent(t, "tcp", "127.0.0.1:0"))
		mustRefuse(t, "silent metrics", err, "read metrics: ", "compare --metrics")
		if !errors.Is(err, context.DeadlineExceeded) || !r.Healthy {
			t.Errorf("Ask = %+v, %v; want a deadline, and what the socket said", r, err)
		}
		within(t, begun, 3*time.Second, 10*time.Second)
	})
	t.Run("caller", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		begun := time.Now()
		if r, err := status.Ask(ctx, silent(t, "unix", filepath.Join(shortDir(t), "k")), ""); err != nil || r.Healthy || r.Error == "" {
			t.Errorf("Ask = %+v, %v", r, err)
		}
		within(t, begun, 0, 2*time.Second)
	})
}

func TestWrongMetrics(t *testing.T) {
	socket := serve(t, healthy())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := ln.Addr().String()
	_ = ln.Close()
	const foreign = "is not that of a kms-plugin"
	for _, c := range []struct{ name, address, text string }{
		{"refused", refused, "read metrics: "},
		{"no port", "127.0.0.1", "read metrics: "},
		{"not an address", "a b", ""},
		{"of another program", page(t, text("# TYPE up gauge\nup 1\n")), foreign},
		{"empty", page(t, text("")), foreign},
		{"HTML", page(t, text("<html>\n")), foreign},
		{"404", page(t, http.NotFoundHandler()), foreign},
		{"500 with metrics", page(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = w.Write([]byte("# TYPE kms_plugin_ready gauge\nkms_plugin_ready 1\n"))
		})), foreign},
	} {
		r, err := status.Ask(t.Context(), socket, c.address)
		mustRefuse(t, c.name, err, c.text, "compare --metrics with listenAddress")
		if !r.Healthy || r.Plugin != nil {
			t.Errorf("%s: report %+v, want what the socket said", c.name, r)
		}
	}
}

// Metrics of another version of the plugin may lack one: that ends in a report
// or an error, never in a panic.
func TestMetricsOfAnotherVersion(t *testing.T) {
	const all = "# TYPE kms_plugin_ready gauge\nkms_plugin_ready 1\n" +
		"# TYPE kms_plugin_config_disk_differs gauge\nkms_plugin_config_disk_differs 0\n" +
		"# TYPE kms_plugin_local_keks gauge\nkms_plugin_local_keks 3\n"
	socket := serve(t, healthy())
	for name, lacks := range map[string]string{"all there": "none", "config_disk_differs": "disk_differs", "local_keks": "local_keks"} {
		t.Run(name, func(t *testing.T) {
			var lines []string
			for l := range strings.Lines(all) {
				if !strings.Contains(l, lacks) {
					lines = append(lines, l)
				}
			}
			address := page(t, text(strings.Join(lines, "")))
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("Ask panics: %v", p)
				}
			}()
			if r, err := status.Ask(t.Context(), socket, address); err == nil && (r.Plugin == nil || !r.Plugin.Ready) {
				t.Errorf("Ask = %+v without an error", r)
			}
		})
	}
}
