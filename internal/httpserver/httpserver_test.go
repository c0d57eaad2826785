package httpserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/httpserver"
)

// server runs on loopback until the test ends.
func server(t *testing.T, c httpserver.Config) (url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- httpserver.Run(ctx, ln, c) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil when its context ends", err)
		}
		if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
			_ = c.Close()
			t.Error("the listener is still open after Run")
		}
	})
	return "http://" + ln.Addr().String()
}

func ready() error { return nil }

func text(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) })
}

func ask(t *testing.T, method, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestPaths(t *testing.T) {
	url := server(t, httpserver.Config{Ready: ready, Metrics: text("up 1\n")})
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/livez", 200, "ok\n"},
		{"GET", "/readyz", 200, "ok\n"},
		{"GET", "/metrics", 200, "up 1\n"},
		{"HEAD", "/livez", 200, ""},
		{"GET", "/livez?verbose", 200, "ok\n"},
		{"POST", "/livez", 405, "Method Not Allowed\n"},
		{"DELETE", "/metrics", 405, "Method Not Allowed\n"},
		{"GET", "/", 404, "404 page not found\n"},
		{"GET", "/livez/", 404, "404 page not found\n"},
		{"GET", "/healthz", 404, "404 page not found\n"},
		{"GET", "/debug/pprof/", 404, "404 page not found\n"},
	} {
		if code, body := ask(t, c.method, url+c.path); code != c.code || body != c.body {
			t.Errorf("%s %s = %d %q, want %d %q", c.method, c.path, code, body, c.code, c.body)
		}
	}
}

// /readyz is asked anew each time; /livez does not care.
func TestNotReady(t *testing.T) {
	var fault atomic.Pointer[error]
	url := server(t, httpserver.Config{Metrics: text(""), Ready: func() error {
		if e := fault.Load(); e != nil {
			return *e
		}
		return nil
	}})
	reason := errors.New(`key "prod" is closed`)
	for _, e := range []*error{nil, &reason, nil} {
		fault.Store(e)
		code, want := 200, "ok\n"
		if e != nil {
			code, want = 503, reason.Error()+"\n"
		}
		if got, body := ask(t, "GET", url+"/readyz"); got != code || body != want {
			t.Errorf("/readyz = %d %q, want %d %q", got, body, code, want)
		}
		if got, body := ask(t, "GET", url+"/livez"); got != 200 || body != "ok\n" {
			t.Errorf("/livez = %d %q while /readyz has %d", got, body, code)
		}
	}
}

// One bad request does not end the server.
func TestLargeHeader(t *testing.T) {
	url := server(t, httpserver.Config{Ready: ready, Metrics: text("")})
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go fmt.Fprintf(c, "GET /livez HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("64 KiB of header = %v, %v; want code 431", resp, err)
	}
	if code, _ := ask(t, "GET", url+"/livez"); code != 200 {
		t.Errorf("/livez = %d after it", code)
	}
}

func TestRunReportsALostListener(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	err = httpserver.Run(t.Context(), ln, httpserver.Config{Ready: ready, Metrics: text("")})
	if !errors.Is(err, net.ErrClosed) || !strings.HasPrefix(err.Error(), "serve 127.0.0.1:") {
		t.Errorf("Run = %v, want an error that names the address", err)
	}
}

func TestRunWithAContextThatEnded(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := httpserver.Run(ctx, ln, httpserver.Config{Ready: ready, Metrics: text("")}); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, want a closed listener", err)
	}
}

// pipes is a listener of connections in memory, so that synctest has the time.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial() net.Conn {
	client, served := net.Pipe()
	p.conns <- served
	return client
}

// inBubble runs a server in fake time and demands that it ends at once.
func inBubble(t *testing.T, c httpserver.Config, f func(t *testing.T, p *pipes, stop context.CancelFunc)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- httpserver.Run(ctx, p, c) }()
		f(t, p, cancel)
		cancel()
		synctest.Wait()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run = %v", err)
			}
		default:
			t.Error("Run goes on after its context ended")
		}
	})
}

// Nobody holds a connection for ever by being slow.
func TestSlowClients(t *testing.T) {
	for _, c := range []struct {
		name, request string
		limit         time.Duration
	}{
		{"says nothing", "", 5 * time.Second},
		{"half a request line", "GET /li", 5 * time.Second},
		{"half a header", "GET /livez HTTP/1.1\r\nHost: x\r\n", 5 * time.Second},
		{"idle after an answer", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, httpserver.Config{Ready: ready, Metrics: text("")}, func(t *testing.T, p *pipes, _ context.CancelFunc) {
				conn, begun := p.dial(), time.Now()
				if _, err := io.WriteString(conn, c.request); err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, conn) // ends when the server hangs up
				if d := time.Since(begun); d != c.limit {
					t.Errorf("the server hung up after %s, want %s", d, c.limit)
				}
			})
		})
	}
}

// A scraper that does not read holds nobody up, and is dropped.
func TestScraperThatDoesNotRead(t *testing.T) {
	var over chan error
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := io.WriteString(w, strings.Repeat("x", 1<<20))
		over <- err
	})
	inBubble(t, httpserver.Config{Ready: ready, Metrics: page}, func(t *testing.T, p *pipes, _ context.CancelFunc) {
		over = make(chan error, 1) // in the bubble: waiting for it lets time pass
		stuck, begun := p.dial(), time.Now()
		defer stuck.Close()
		if _, err := io.WriteString(stuck, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		other := p.dial()
		defer other.Close()
		if _, err := io.WriteString(other, "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(other); err != nil || !strings.HasSuffix(string(b), "\r\nok\n") || time.Since(begun) != 0 {
			t.Errorf("/livez beside it = %q, %v after %s", b, err, time.Since(begun))
		}
		if err := <-over; err == nil || time.Since(begun) != 30*time.Second {
			t.Errorf("the write ended with %v after %s, want an error after 30 s", err, time.Since(begun))
		}
	})
}

// The end does not wait for a call that hangs.
func TestShutdownCutsCallsOff(t *testing.T) {
	entered := make(chan struct{})
	hang := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	})
	inBubble(t, httpserver.Config{Ready: ready, Metrics: hang}, func(t *testing.T, p *pipes, stop context.CancelFunc) {
		conn, begun := p.dial(), time.Now()
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-entered
		stop()
		if b, _ := io.ReadAll(conn); len(b) != 0 || time.Since(begun) != 0 {
			t.Errorf("the caller got %q after %s, want a closed connection at once", b, time.Since(begun))
		}
	})
}
