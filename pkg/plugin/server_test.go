package plugin_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

// A panic ends one call, shows nothing of the request, and the server lives on.
func TestPanics(t *testing.T) {
	for name, value := range map[string]any{
		"text with the seed": "bad seed " + seed,
		"the seed":           keys.Secret(seed),
		"an error":           errors.New("x " + seed),
		"bytes":              []byte(seed),
	} {
		t.Run(name, func(t *testing.T) {
			b, j := newBackend(t), &journal{}
			good := true
			b.keyID = func() (string, error) {
				if !good {
					panic(value)
				}
				return keyID, nil
			}
			b.seal = func(context.Context, keys.Secret, *plugin.Sealed) error { panic(value) }
			b.open = func(context.Context, plugin.OpenRequest, *keys.Secret) error { panic(value) }
			c, _ := serve(t, b, j)
			const text = "internal error, see the log of kms-plugin"
			for range 3 {
				good = false
				_, err := c.Status(t.Context(), &kmsapi.StatusRequest{})
				mustFail(t, "Status", err, codes.Internal, text)
				_, err = c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "u"})
				mustFail(t, "Encrypt", err, codes.Internal, text)
				_, err = c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), Uid: "u", KeyId: keyID})
				mustFail(t, "Decrypt", err, codes.Internal, text)
				good = true
				if s, err := c.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil || s.GetKeyId() != keyID {
					t.Fatalf("Status after the panics = %v, %v", s, err)
				}
			}
			log := j.text()
			mustHide(t, "log", log)
			for _, want := range []string{"panic in a call", "/v2.KeyManagementService/Encrypt", "backend_test.go", "Encrypt Internal", "Decrypt Internal", "Status Internal"} {
				if !strings.Contains(log, want) {
					t.Errorf("log and metrics lack %q", want)
				}
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if strings.Trim(string(b.seeds[0]), "\x00") != "" {
				t.Error("the seed of the call that panicked is still in memory")
			}
		})
	}
}

// A call that panics has happened: the audit log says so.
func TestPanicIsAudited(t *testing.T) {
	b, j := newBackend(t), &journal{}
	b.open = func(context.Context, plugin.OpenRequest, *keys.Secret) error { panic("x") }
	c, _ := serve(t, b, j)
	_, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), Uid: "u7", KeyId: keyID})
	mustFail(t, "Decrypt", err, codes.Internal, "internal error")
	if call, _ := j.last(); call.UID != "u7" || call.Err == nil {
		t.Errorf("the audit log has %+v, want the call that panicked", call)
	}
}

// MaxStreams calls are in flight on a connection and no more; the rest wait in
// the client, and are served when there is room.
func TestMaxStreams(t *testing.T) {
	b, j := newBackend(t), &journal{}
	entered, release := make(chan struct{}, 2*plugin.MaxStreams), make(chan struct{})
	b.open = func(ctx context.Context, _ plugin.OpenRequest, s *keys.Secret) error {
		entered <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return keys.ErrNotReady
	}
	c, _ := serve(t, b, j)
	ctx := deadline(t)
	call := func(ctx context.Context) error {
		_, err := c.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: []byte("x"), Uid: "u", KeyId: keyID})
		return err
	}
	if _, err := c.Status(ctx, &kmsapi.StatusRequest{}); err != nil { // the settings have arrived
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range plugin.MaxStreams + 50 {
		wg.Go(func() {
			if err := call(ctx); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "not ready") {
				t.Errorf("Decrypt = %v, want the backend's answer", err)
			}
		})
	}
	for range plugin.MaxStreams {
		select {
		case <-entered:
		case <-ctx.Done():
			t.Fatalf("only %d calls are in flight, want %d", b.count(), plugin.MaxStreams)
		}
	}
	// One more finds no room until its own time is over.
	brief, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if err := call(brief); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a call over the limit = %v, want DeadlineExceeded", err)
	}
	if n := b.count(); n != plugin.MaxStreams {
		t.Errorf("%d calls reached the backend, want %d", n, plugin.MaxStreams)
	}
	close(release)
	wg.Wait()
	if n := b.count(); n != plugin.MaxStreams+50 {
		t.Errorf("%d calls were served, want %d", n, plugin.MaxStreams+50)
	}
}

// What the caller gave up reaches the backend as a cancelled context.
func TestCancelReachesTheBackend(t *testing.T) {
	b, j := newBackend(t), &journal{}
	entered, ended := make(chan struct{}), make(chan error, 1)
	b.open = func(ctx context.Context, _ plugin.OpenRequest, _ *keys.Secret) error {
		close(entered)
		<-ctx.Done()
		ended <- ctx.Err()
		return ctx.Err()
	}
	c, _ := serve(t, b, j)
	ctx, cancel := context.WithCancel(deadline(t))
	done := make(chan error, 1)
	go func() {
		_, err := c.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: []byte("x"), Uid: "u", KeyId: keyID})
		done <- err
	}()
	select {
	case <-entered:
	case err := <-done:
		t.Fatalf("Decrypt = %v before it reached the backend", err)
	}
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("Decrypt = %v, want Canceled", err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the backend saw %v", err)
		}
	case <-deadline(t).Done():
		t.Error("the backend never saw the end of the call")
	}
}

// There is no other service: the socket says no more than it must.
func TestNoOtherService(t *testing.T) {
	srv := plugin.NewServer(plugin.NewService(newBackend(t), &journal{}), plugin.ServerConfig{})
	defer srv.Stop()
	info := srv.GetServiceInfo()
	if len(info) != 1 || len(info["v2.KeyManagementService"].Methods) != 3 {
		t.Errorf("services %v, want KMS v2 alone", info)
	}
}

// What was opened is overwritten in the server once the answer is on its way.
func TestOpenedSeedsEndWithTheCall(t *testing.T) {
	b := newBackend(t)
	c, _ := serve(t, b, &journal{})
	sealed, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "u"})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: sealed.Ciphertext, Uid: "u", KeyId: sealed.KeyId, Annotations: sealed.Annotations})
	if err != nil || string(opened.Plaintext) != seed {
		t.Fatalf("Decrypt = %q, %v", opened.GetPlaintext(), err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, s := range b.seeds {
		if strings.Trim(string(s), "\x00") != "" {
			t.Errorf("seed %d of %d is still in memory", i, len(b.seeds))
		}
	}
}
