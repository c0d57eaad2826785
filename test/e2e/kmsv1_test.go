//go:build e2e

//lint:file-ignore SA1019 values of the deprecated API are what is made here
package e2e

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"k8s.io/kms/apis/v1beta1"
)

// kmsV1 is a plugin of the API before ours, for values as clusters still have them. It
// really encrypts.
type kmsV1 struct {
	v1beta1.UnsafeKeyManagementServiceServer
	aead cipher.AEAD
}

// serveKMSv1 returns its socket.
func serveKMSv1(t *testing.T, dir string) string {
	t.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "v1.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	v1beta1.RegisterKeyManagementServiceServer(s, &kmsV1{aead: aead})
	go func() { _ = s.Serve(ln) }() // ends with Stop
	t.Cleanup(s.Stop)
	return socket
}

func (k *kmsV1) Version(context.Context, *v1beta1.VersionRequest) (*v1beta1.VersionResponse, error) {
	return &v1beta1.VersionResponse{Version: "v1beta1", RuntimeName: "test", RuntimeVersion: "0.0.1"}, nil
}

func (k *kmsV1) Encrypt(_ context.Context, r *v1beta1.EncryptRequest) (*v1beta1.EncryptResponse, error) {
	return &v1beta1.EncryptResponse{Cipher: k.aead.Seal(nil, nil, r.Plain, nil)}, nil
}

func (k *kmsV1) Decrypt(_ context.Context, r *v1beta1.DecryptRequest) (*v1beta1.DecryptResponse, error) {
	plain, err := k.aead.Open(nil, nil, r.Cipher, nil)
	return &v1beta1.DecryptResponse{Plain: plain}, err
}
