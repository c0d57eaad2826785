package plugin_test

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	kmsapi "k8s.io/kms/apis/v2"
)

func TestEncryptRequests(t *testing.T) {
	long := strings.Repeat("u", 256)
	for _, c := range []struct {
		name, plaintext, uid string
		code                 codes.Code
		text                 string
	}{
		{"good", seed, "u", codes.OK, ""},
		{"longest uid", seed, long, codes.OK, ""},
		{"empty", "", "u", codes.InvalidArgument, "plaintext has 0 bytes, a DEK seed has 32"},
		{"short", seed[:31], "u", codes.InvalidArgument, "plaintext has 31 bytes"},
		{"long", seed + "x", "u", codes.InvalidArgument, "plaintext has 33 bytes"},
		{"60 KiB", strings.Repeat("x", 60<<10), "u", codes.InvalidArgument, "plaintext has 61440 bytes"},
		{"no uid", seed, "", codes.InvalidArgument, "uid has 0 bytes, 1 to 256"},
		{"long uid", seed, long + "u", codes.InvalidArgument, "uid has 257 bytes"},
		{"4 MiB", strings.Repeat("x", 4<<20), "u", codes.ResourceExhausted, "larger than max"},
	} {
		b, j := newBackend(t), &journal{}
		client, _ := serve(t, b, j)
		_, err := client.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(c.plaintext), Uid: c.uid})
		mustFail(t, c.name, err, c.code, c.text)
		if reached := b.count() > 0; reached != (c.code == codes.OK) {
			t.Errorf("%s: reached the backend: %t", c.name, reached)
		}
		if call, _ := j.last(); len(call.UID) > 256 {
			t.Errorf("%s: %d bytes of uid go to the audit log", c.name, len(call.UID))
		}
		if _, err := client.Status(t.Context(), &kmsapi.StatusRequest{}); err != nil {
			t.Errorf("%s: Status after it = %v", c.name, err)
		}
	}
}

func TestDecryptRequests(t *testing.T) {
	big := func(n int) map[string][]byte { return map[string][]byte{"a.b": make([]byte, n-3)} }
	for _, c := range []struct {
		name    string
		request *kmsapi.DecryptRequest
		text    string // of the refusal, "" if the backend gets it
	}{
		{"largest", &kmsapi.DecryptRequest{Ciphertext: make([]byte, 1024), KeyId: strings.Repeat("k", 1024), Uid: strings.Repeat("u", 256), Annotations: big(32 << 10)}, ""},
		{"one byte", &kmsapi.DecryptRequest{Ciphertext: []byte{0}, KeyId: "k", Uid: "u"}, ""},
		{"nothing", &kmsapi.DecryptRequest{}, "key_id is empty"},
		{"no key_id", &kmsapi.DecryptRequest{Ciphertext: []byte{0}, Uid: "u"}, "key_id is empty"},
		{"long key_id", &kmsapi.DecryptRequest{Ciphertext: []byte{0}, KeyId: strings.Repeat("k", 1025), Uid: "u"}, "key_id has 1025 bytes, at most 1024"},
		{"no ciphertext", &kmsapi.DecryptRequest{KeyId: "k", Uid: "u"}, "ciphertext is empty"},
		{"long ciphertext", &kmsapi.DecryptRequest{Ciphertext: make([]byte, 1025), KeyId: "k", Uid: "u"}, "ciphertext has 1025 bytes, at most 1024"},
		{"large annotation", &kmsapi.DecryptRequest{Ciphertext: []byte{0}, KeyId: "k", Uid: "u", Annotations: big(32<<10 + 1)}, "annotations have 32769 bytes, at most 32768"},
		{"large annotation name", &kmsapi.DecryptRequest{Ciphertext: []byte{0}, KeyId: "k", Uid: "u", Annotations: map[string][]byte{strings.Repeat("a", 40000): nil}}, "annotations have 40000 bytes"},
		{"two annotations", &kmsapi.DecryptRequest{Ciphertext: []byte{0}, KeyId: "k", Uid: "u", Annotations: map[string][]byte{"a": make([]byte, 20000), "b": make([]byte, 20000)}}, "annotations have 40002 bytes"},
		{"no uid", &kmsapi.DecryptRequest{Ciphertext: []byte{0}, KeyId: "k"}, "uid has 0 bytes"},
		{"long uid", &kmsapi.DecryptRequest{Ciphertext: []byte{0}, KeyId: "k", Uid: strings.Repeat("u", 257)}, "uid has 257 bytes"},
	} {
		b, j := newBackend(t), &journal{}
		client, _ := serve(t, b, j)
		_, err := client.Decrypt(t.Context(), c.request)
		text := c.text
		if text == "" {
			text = "the ciphertext does not open" // the backend's answer
		}
		mustFail(t, c.name, err, codes.InvalidArgument, text)
		if reached := b.count() > 0; reached != (c.text == "") {
			t.Errorf("%s: reached the backend: %t", c.name, reached)
		}
		call, rpc := j.last()
		if call.Op != "decrypt" || call.Err == nil || len(call.KeyID) > 128 || len(call.UID) > 256 || rpc != "Decrypt InvalidArgument" {
			t.Errorf("%s: recorded %q with %d bytes of key_id and %d of uid", c.name, rpc, len(call.KeyID), len(call.UID))
		}
	}
}

// raw sends bytes that no client library would make.
type raw struct{}

func (raw) Name() string { return "proto" }
func (raw) Marshal(v any) ([]byte, error) {
	return *v.(*[]byte), nil
}
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = b; return nil }

// message is fields 1, 2, ... in the order given, "" left out.
func message(fields ...string) []byte {
	var b []byte
	for i, f := range fields {
		if f != "" {
			b = protowire.AppendTag(b, protowire.Number(i+1), protowire.BytesType)
			b = protowire.AppendString(b, f)
		}
	}
	return b
}

// Text that is not UTF-8 cannot be stored by the API server, nor logged by us.
func TestHostileBytes(t *testing.T) {
	b, j := newBackend(t), &journal{}
	client, conn := serve(t, b, j)
	bad := "\xff" + seed
	entry := string(message(bad, "v"))
	for _, c := range []struct {
		name, method string
		request      []byte
	}{
		{"uid", "Encrypt", message(seed, bad)},
		{"key_id", "Decrypt", message("c", "u", bad)},
		{"decrypt uid", "Decrypt", message("c", bad, keyID)},
		{"annotation name", "Decrypt", message("c", "u", keyID, entry)},
		{"cut short", "Decrypt", message("c", "u", keyID)[:8]},
		{"not protobuf", "Decrypt", []byte(seed)},
		{"not protobuf", "Encrypt", []byte("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")},
	} {
		var reply []byte
		err := conn.Invoke(t.Context(), "/v2.KeyManagementService/"+c.method, &c.request, &reply, grpc.ForceCodec(raw{}))
		mustFail(t, c.name, err, codes.Internal, "unmarshal")
		if !utf8.ValidString(fmt.Sprint(err)) {
			t.Errorf("%s: the error is not UTF-8: %q", c.name, err)
		}
	}
	if b.count() != 0 {
		t.Errorf("%d hostile requests reached the backend", b.count())
	}
	// Bytes are bytes: these fields may hold anything.
	_, err := client.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("\xff\x00"), KeyId: keyID, Uid: "u", Annotations: map[string][]byte{"a.b": []byte("\xff")}})
	mustFail(t, "bytes", err, codes.InvalidArgument, "the ciphertext does not open")
}
