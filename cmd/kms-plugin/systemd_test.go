package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"
)

func TestStatesForSystemd(t *testing.T) {
	m := newManager(t)
	m.withoutFD = true
	m.socket.Close() // unlinks: the child binds its own
	m.watchdogUSec = "200000"
	m.start()
	m.hears("READY=1\nSTATUS=serving")
	c, err := net.Dial("unix", m.dir+"/s")
	if err != nil {
		t.Fatalf("READY, but the socket does not accept: %v", err)
	}
	c.Close()
	m.hears("WATCHDOG=1")
	m.hears("WATCHDOG=1")
	if err := m.child.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	m.hears("RELOADING=1\nMONOTONIC_USEC=")
	m.hears("READY=1\nSTATUS=serving")
	m.configure("typo: 1\n")
	m.hears("RELOADING=1\nMONOTONIC_USEC=")
	m.hears("READY=1\nSTATUS=serving the last good configuration")
	m.configure("")
	m.hears("STATUS=serving")
	if err := m.child.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.hears("STOPPING=1")
	if err := m.child.Wait(); err != nil {
		t.Errorf("the child ended with %v", err)
	}
	m.child = nil
}

// While systemd holds the socket, the program is replaced under callers that never
// see a dial refused nor a call fail.
func TestNoDialIsRefusedAcrossRestarts(t *testing.T) {
	m := newManager(t)
	m.start()
	m.hears("READY=1")
	m.logs(`"passed":true`)
	socket := m.dir + "/s"
	var dials, refused, calls, failed atomic.Int64
	var firstFailure atomic.Value
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		dials.Add(1)
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil && ctx.Err() == nil {
			refused.Add(1)
			firstFailure.CompareAndSwap(nil, "dial: "+err.Error())
		}
		return c, err
	}
	// kube-apiserver: one connection, calls that wait for it.
	conn, err := grpc.NewClient("passthrough:///s", grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	kms := kmsapi.NewKeyManagementServiceClient(conn)
	status := func(ctx context.Context) error {
		r, err := kms.Status(ctx, &kmsapi.StatusRequest{})
		if err == nil && r.GetHealthz() != "ok" {
			err = fmt.Errorf("healthz %q", r.GetHealthz())
		}
		return err
	}
	deadline := time.Now().Add(2 * time.Minute)
	for status(t.Context()) != nil && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond) // polls
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			calls.Add(1)
			call, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			if err := status(call); err != nil {
				failed.Add(1)
				firstFailure.CompareAndSwap(nil, "call: "+err.Error())
			}
			cancel()
		}
	})
	wg.Go(func() { // and others, that dial all the time
		for ctx.Err() == nil {
			if c, err := dial(ctx, ""); err == nil {
				c.Close()
			}
			<-time.After(20 * time.Millisecond) // more would fill the queue of a slow machine
		}
	})
	for range 3 {
		before := calls.Load()
		m.ends()
		m.start()
		m.hears("READY=1")
		for calls.Load() < before+5 && time.Now().Before(deadline.Add(5*time.Minute)) {
			<-time.After(10 * time.Millisecond) // polls
		}
	}
	stop()
	wg.Wait()
	t.Logf("%d dials, %d calls across 3 restarts", dials.Load(), calls.Load())
	if refused.Load() > 0 || failed.Load() > 0 {
		t.Errorf("%d of %d dials were refused, %d of %d calls failed: %v", refused.Load(), dials.Load(), failed.Load(), calls.Load(), firstFailure.Load())
	}
	if calls.Load() < 15 {
		t.Errorf("%d calls only: the restarts were not seen through", calls.Load())
	}
	m.ends()
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the child removed a socket that is not its own: %v", err)
	}
}

// READY is about the socket. A KMS that is away, and a credential that is not to be
// had, keep no unit from starting.
func TestReadyWithoutKMS(t *testing.T) {
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:1/credentials")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	m := newManager(t)
	m.configure("")
	data, err := os.ReadFile(m.config)
	if err != nil {
		t.Fatal(err)
	}
	away := `awskms: {keyARN: "arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555", endpoint: "http://127.0.0.1:1"}`
	i := bytes.Index(data, []byte("localfile:"))
	if err := os.WriteFile(m.config, append(data[:i:i], away+"\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.hears("READY=1")
	_, errs, code := command(t, "wait", "--socket", m.dir+"/s", "--timeout", "10s", "--listening")
	if code != 0 {
		t.Errorf("wait --listening: code %d, %s", code, errs)
	}
	_, errs, code = command(t, "wait", "--socket", m.dir+"/s", "--timeout", "2s")
	if code != 1 || !strings.Contains(errs, "does not serve after") {
		t.Errorf("wait: code %d, %s; want that it does not serve", code, errs)
	}
	m.ends()
}

func TestPassedSocketOfAnotherPath(t *testing.T) {
	m := newManager(t)
	data, err := os.ReadFile(m.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.config, bytes.Replace(data, []byte("/s}"), []byte("/other}"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	err = m.child.Wait()
	m.child = nil
	out := m.childLog.String()
	if err == nil || !strings.Contains(out, "which is another path") || !strings.Contains(out, "hint: make ListenStream=") {
		t.Errorf("the child ended with %v:\n%s", err, out)
	}
}
