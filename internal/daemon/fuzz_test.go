package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/daemon"
	"kms-plugin.io/pkg/keys/localfile"
)

// raw passes bytes as they are where a message should be.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}

// served is a daemon with a key in a file, for as long as a fuzz target runs.
type served struct {
	socket string
	conn   *grpc.ClientConn
	sealed *kmsapi.EncryptResponse
}

var fuzzedSeed = bytes.Repeat([]byte{7}, 32)

func serveForFuzz(f *testing.F) *served {
	f.Helper()
	dir, err := os.MkdirTemp("", "kf")
	if err != nil {
		f.Fatal(err)
	}
	keyset, file := filepath.Join(dir, "keyset.json"), filepath.Join(dir, "config.yaml")
	if err := localfile.Create(keyset); err != nil {
		f.Fatal(err)
	}
	data := fmt.Sprintf("apiVersion: kms-plugin.io/v1\nkind: KMSPluginConfiguration\nclusterID: fuzz\nsocket: {path: %[1]s/kms.sock}\nstateDir: %[1]s\nlistenAddress: \"\"\nkeys:\n- {name: prod, role: write, localfile: {path: %[1]s/keyset.json}}\n", dir)
	if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- daemon.Run(ctx, daemon.Options{Source: daemon.Source{Path: file}, Log: io.Discard})
	}()
	s := &served{socket: filepath.Join(dir, "kms.sock")}
	s.conn, err = grpc.NewClient("unix://"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		s.conn.Close()
		cancel()
		<-done
		os.RemoveAll(dir)
	})
	kms := kmsapi.NewKeyManagementServiceClient(s.conn)
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		s.sealed, err = kms.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: fuzzedSeed, Uid: "fuzz"})
		if err == nil {
			return s
		}
		if time.Now().After(until) {
			f.Fatal(err)
		}
	}
}

// alive demands that the daemon still answers, and still opens what it sealed.
func (s *served) alive(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	kms := kmsapi.NewKeyManagementServiceClient(s.conn)
	if r, err := kms.Status(ctx, &kmsapi.StatusRequest{}); err != nil || r.Healthz != "ok" || r.KeyId != s.sealed.KeyId {
		t.Fatalf("Status = %v, %v", r, err)
	}
	r, err := kms.Decrypt(ctx, request(s.sealed))
	if err != nil || !bytes.Equal(r.Plaintext, fuzzedSeed) {
		t.Fatalf("Decrypt of what it sealed: %v", err)
	}
}

// Any bytes as a request of any method: an answer or an error, never a panic, and
// what is not what was sealed never opens.
func FuzzRPC(f *testing.F) {
	s := serveForFuzz(f)
	add := func(method string, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(method, b)
	}
	add("Status", &kmsapi.StatusRequest{})
	add("Encrypt", &kmsapi.EncryptRequest{Plaintext: fuzzedSeed, Uid: "u"})
	add("Decrypt", request(s.sealed))
	add("Decrypt", &kmsapi.DecryptRequest{Uid: "u", KeyId: "prod:" + strings.Repeat("a", 32), Ciphertext: make([]byte, 72)})
	f.Add("Decrypt", []byte("\x0a\xff\xff\xff\xff\x0f"))
	f.Add("ServerReflectionInfo", []byte{})
	f.Fuzz(func(t *testing.T, method string, message []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var answer []byte
		err := s.conn.Invoke(ctx, "/v2.KeyManagementService/"+method, message, &answer, grpc.ForceCodec(raw{}))
		switch code := status.Code(err); {
		case code == codes.DeadlineExceeded, code == codes.Unavailable, code == codes.Unknown:
			t.Fatalf("%s: %v", method, err)
		case strings.Contains(fmt.Sprint(err), "internal error"):
			t.Fatalf("%s: a panic: %v", method, err)
		case err == nil && method == "Decrypt":
			var r kmsapi.DecryptResponse
			if err := proto.Unmarshal(answer, &r); err != nil || !bytes.Equal(r.Plaintext, fuzzedSeed) {
				t.Fatalf("Decrypt opened to %d other bytes, %v", len(r.Plaintext), err)
			}
		}
		s.alive(t)
	})
}

// Any bytes on the socket, with the preface of HTTP/2 or without: nothing of it harms
// the connection of the API server.
func FuzzConnection(f *testing.F) {
	s := serveForFuzz(f)
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	f.Add(true, []byte(settings))
	f.Add(true, []byte(settings+"\x00\x00\x05\x01\x04\x00\x00\x00\x01\x83\x86\x84\x04\x00"))
	f.Add(true, []byte(settings+"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"))
	f.Add(true, []byte(settings+"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08"))
	f.Add(false, []byte("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"))
	f.Fuzz(func(t *testing.T, preface bool, data []byte) {
		c, err := net.DialTimeout("unix", s.socket, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if preface {
			data = append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), data...)
		}
		if _, err := c.Write(data); err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		_ = c.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the connection stays open after its end: %v", err)
		}
		s.alive(t)
	})
}
