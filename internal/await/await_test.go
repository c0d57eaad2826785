package await_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/await"
)

// plugin gives one answer for ever, or an error for the first calls.
type plugin struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	answer *kmsapi.StatusResponse
	err    error
	fail   int64 // how many calls; -1: all
	calls  atomic.Int64
}

func (p *plugin) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	if n := p.calls.Add(1); p.fail < 0 || n <= p.fail {
		return nil, p.err
	}
	return p.answer, nil
}

var good = &kmsapi.StatusResponse{Version: "v2", Healthz: "ok", KeyId: "k:00"}

func path(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "aw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func serve(t *testing.T, socket string, p *plugin) {
	t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(srv, p)
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(srv.Stop)
}

func TestServed(t *testing.T) {
	notReady := status.Error(codes.Unavailable, "not ready")
	for name, tc := range map[string]struct {
		plugin    *plugin // nil: nobody
		listening bool
		want      string // of the error; "" is none
		hint      string
	}{
		"serves":                   {plugin: &plugin{answer: good}},
		"ready at the third call":  {plugin: &plugin{answer: good, err: notReady, fail: 2}},
		"never ready":              {plugin: &plugin{err: notReady, fail: -1}, want: "Unavailable: not ready", hint: "systemctl status kms-plugin"},
		"never ready, but accepts": {plugin: &plugin{err: notReady, fail: -1}, listening: true},
		"not healthy":              {plugin: &plugin{answer: &kmsapi.StatusResponse{Version: "v2", Healthz: "away", KeyId: "k"}}, want: `healthz "away"`, hint: "its log"},
		"no key_id":                {plugin: &plugin{answer: &kmsapi.StatusResponse{Version: "v2", Healthz: "ok"}}, want: `key_id ""`, hint: "its log"},
		"another version":          {plugin: &plugin{answer: &kmsapi.StatusResponse{Version: "v1", Healthz: "ok", KeyId: "k"}}, want: `version "v1"`, hint: "its log"},
		"no socket":                {want: "there is no socket", hint: "is the plugin running"},
		"no socket to accept":      {listening: true, want: "no such file", hint: "systemctl status kms-plugin"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			socket, limit := path(t), time.Minute
			if tc.plugin != nil {
				serve(t, socket, tc.plugin)
			}
			if tc.want != "" {
				limit = 3 * time.Second // one answer at least, on a busy machine
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			err := await.Served(ctx, await.Options{Socket: socket, Listening: tc.listening, Poll: 10 * time.Millisecond})
			if tc.want == "" {
				if err != nil {
					t.Errorf("Served = %v, want nil", err)
				}
				return
			}
			var h interface{ Hint() string }
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "does not serve after") || strings.Contains(err.Error(), "rpc error") {
				t.Errorf("Served = %v, want %q", err, tc.want)
			}
			if !errors.As(err, &h) || !strings.Contains(h.Hint(), tc.hint) {
				t.Errorf("the hint of %v is not %q", err, tc.hint)
			}
		})
	}
}

// A plugin that comes later is found at once: no back-off.
func TestServedLater(t *testing.T) {
	socket := path(t)
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() { done <- await.Served(ctx, await.Options{Socket: socket, Poll: 10 * time.Millisecond}) }()
	select {
	case err := <-done:
		t.Fatalf("Served = %v before anybody serves", err)
	case <-time.After(100 * time.Millisecond):
	}
	serve(t, socket, &plugin{answer: good})
	if err := <-done; err != nil {
		t.Errorf("Served = %v", err)
	}
}

// A dead socket file names the cause, not a missed deadline.
func TestServedDeadSocket(t *testing.T) {
	t.Parallel()
	socket := path(t)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	err = await.Served(ctx, await.Options{Socket: socket, Poll: 10 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "nobody serves socket") {
		t.Errorf("Served = %v, want that nobody serves it", err)
	}
}

// A server that takes connections and never answers is given up in time.
func TestServedSilent(t *testing.T) {
	socket := path(t)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = await.Served(ctx, await.Options{Socket: socket, Poll: 10 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "DeadlineExceeded") {
		t.Errorf("Served = %v, want a missed deadline", err)
	}
}
