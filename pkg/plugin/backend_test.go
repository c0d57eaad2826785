package plugin_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

const keyID = "prod:0123456789abcdef0123456789abcdef"

// backend really seals, with the annotations as associated data. Its hooks make
// the faults; they are set before the first call.
type backend struct {
	aead  cipher.AEAD
	keyID func() (string, error)
	seal  func(context.Context, keys.Secret, *plugin.Sealed) error
	open  func(context.Context, plugin.OpenRequest, *keys.Secret) error

	mu    sync.Mutex
	seeds []keys.Secret // every seed that went in or out, to see it overwritten
	calls int           // that reached the backend
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return &backend{aead: a}
}

func (b *backend) saw(s keys.Secret) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	b.seeds = append(b.seeds, s)
}

func (b *backend) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls
}

func (b *backend) KeyID() (string, error) {
	if b.keyID != nil {
		return b.keyID()
	}
	return keyID, nil
}

func (b *backend) Seal(ctx context.Context, seed keys.Secret) (plugin.Sealed, error) {
	b.saw(seed)
	s := plugin.Sealed{Ciphertext: b.aead.Seal(nil, nil, seed, []byte(keyID)), KeyID: keyID,
		Annotations: map[string][]byte{"v1.kms-plugin.io": []byte("header")}, Detail: plugin.Detail{KEK: "fake:1", RequestID: "r1"}}
	if b.seal != nil {
		if err := b.seal(ctx, seed, &s); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (b *backend) Open(ctx context.Context, r plugin.OpenRequest) (keys.Secret, plugin.Detail, error) {
	p, err := b.aead.Open(nil, nil, r.Ciphertext, []byte(r.KeyID))
	seed, detail := keys.Secret(p), plugin.Detail{KEK: "fake:1"}
	b.saw(seed)
	if b.open != nil {
		return seed, detail, b.open(ctx, r, &seed)
	}
	if err != nil {
		return nil, detail, fmt.Errorf("%w: the ciphertext does not open", keys.ErrContradiction)
	}
	return seed, detail, nil
}

// journal is auditor, observer and log of one server.
type journal struct {
	mu    sync.Mutex
	calls []plugin.Call
	rpcs  []string
	log   bytes.Buffer
	fail  error
}

func (j *journal) Audit(c plugin.Call) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.calls = append(j.calls, c)
	return j.fail
}

func (j *journal) RPC(method string, code codes.Code, d time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if d < 0 {
		method = "negative time of " + method
	}
	j.rpcs = append(j.rpcs, method+" "+code.String())
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.log.Write(p)
}

// text is everything that was recorded, as a log would print it.
func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return fmt.Sprintf("%s %+v %q", j.log.String(), j.calls, j.rpcs)
}

// last is the latest audited call and measured RPC; the zero values if none.
func (j *journal) last() (c plugin.Call, rpc string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.calls); n > 0 {
		c = j.calls[n-1]
	}
	if n := len(j.rpcs); n > 0 {
		rpc = j.rpcs[n-1]
	}
	return c, rpc
}

// serve puts a backend on a unix socket and connects to it.
func serve(t *testing.T, b plugin.Backend, j *journal) (kmsapi.KeyManagementServiceClient, *grpc.ClientConn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := plugin.NewServer(plugin.NewService(b, j), plugin.ServerConfig{Observer: j, Log: slog.New(slog.NewJSONHandler(j, nil))})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(8<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		srv.Stop()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	return kmsapi.NewKeyManagementServiceClient(conn), conn
}

// deadline bounds a test that waits for another goroutine.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
