//go:build e2e

package e2e

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// before is the URL of a way to this etcd on which f has been done before anything that
// a client sends goes on, until stop.
func before(t *testing.T, etcd string, f func(context.Context) error) (at string, stop func()) {
	t.Helper()
	u, err := url.Parse(etcd)
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := u.Host
	u.Host = l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				if err := carry(ctx, client, host, f); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			})
		}
	})
	return u.String(), func() {
		cancel()
		_ = l.Close()
		all.Wait()
	}
}

// carry serves one connection until either side ends it.
func carry(ctx context.Context, client net.Conn, host string, f func(context.Context) error) error {
	defer client.Close()
	server, err := new(net.Dialer).DialContext(ctx, "tcp", host)
	if err != nil {
		return err
	}
	defer server.Close()
	defer context.AfterFunc(ctx, func() { _ = client.Close() })()
	var back sync.WaitGroup
	defer back.Wait()
	defer server.Close()
	back.Go(func() {
		defer client.Close()
		_, _ = io.Copy(client, server) // ends when one of them does
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if n > 0 {
			if err := f(ctx); err != nil {
				return err
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return nil // etcd ended it
			}
		}
		if err != nil {
			return nil
		}
	}
}
