// Command otherkms is another KMS v2 plugin, to move away from: AES-GCM under a
// key in its file, and nothing of kms-plugin. It is for tests.
package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "otherkms:", err)
		os.Exit(1)
	}
}

// run serves a socket under a key of 32 bytes.
func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("want SOCKET KEY-FILE, got %d arguments", len(args))
	}
	key, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return err
	}
	_ = os.Remove(args[0]) // of an earlier run
	l, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	kmsapi.RegisterKeyManagementServiceServer(s, &server{aead: aead})
	return s.Serve(l)
}

const keyID = "other-key"

type server struct {
	kmsapi.UnimplementedKeyManagementServiceServer
	aead cipher.AEAD
}

func (s *server) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	return &kmsapi.StatusResponse{Version: "v2", Healthz: "ok", KeyId: keyID}, nil
}

func (s *server) Encrypt(_ context.Context, r *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	return &kmsapi.EncryptResponse{Ciphertext: s.aead.Seal(nil, nil, r.GetPlaintext(), nil), KeyId: keyID}, nil
}

func (s *server) Decrypt(_ context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	plain, err := s.aead.Open(nil, nil, r.GetCiphertext(), nil)
	if err != nil {
		return nil, err
	}
	return &kmsapi.DecryptResponse{Plaintext: plain}, nil
}
