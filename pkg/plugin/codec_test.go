package plugin

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	kmsapi "k8s.io/kms/apis/v2"
)

// The bytes on the wire are gRPC's, and nothing of a seed is left behind them.
func TestCodecWipes(t *testing.T) {
	seed := bytes.Repeat([]byte{0xab}, 32)
	own, err := encoding.GetCodecV2(proto.Name).Marshal(&kmsapi.DecryptResponse{Plaintext: seed})
	if err != nil {
		t.Fatal(err)
	}
	r := &kmsapi.DecryptResponse{Plaintext: bytes.Clone(seed)}
	sent, err := newCodec().Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sent.Materialize(), own.Materialize()) {
		t.Errorf("marshalled to %x, want %x", sent.Materialize(), own.Materialize())
	}
	raw := sent[0].ReadOnlyData()
	if bytes.Contains(r.Plaintext, seed[:4]) || !bytes.Contains(raw, seed) {
		t.Errorf("after Marshal the response holds %x, the message %x", r.Plaintext, raw)
	}
	sent.Free()
	if bytes.Contains(raw, seed[:4]) {
		t.Errorf("what was sent is still there: %x", raw)
	}

	in, err := newCodec().Marshal(&kmsapi.EncryptRequest{Uid: "u", Plaintext: seed})
	if err != nil {
		t.Fatal(err)
	}
	var got kmsapi.EncryptRequest
	if err := newCodec().Unmarshal(in, &got); err != nil || got.Uid != "u" || !bytes.Equal(got.Plaintext, seed) {
		t.Errorf("Unmarshal gave %v, %v", &got, err)
	}
	if bytes.Contains(in.Materialize(), seed[:4]) {
		t.Error("what was received is still there")
	}
}

// Messages of any size and in any number of pieces are the same as gRPC's.
func TestCodecSizes(t *testing.T) {
	for _, size := range []int{0, 1, 1000, pooledSize, 3 * pooledSize} {
		plain := bytes.Repeat([]byte{7}, size)
		out, err := newCodec().Marshal(&kmsapi.DecryptResponse{Plaintext: bytes.Clone(plain)})
		if err != nil {
			t.Fatal(err)
		}
		b := out.Materialize()
		out.Free()
		pieces := mem.BufferSlice{mem.SliceBuffer(b[:len(b)/2]), mem.SliceBuffer(b[len(b)/2:])}
		var got kmsapi.DecryptResponse
		if err := newCodec().Unmarshal(pieces, &got); err != nil || !bytes.Equal(got.Plaintext, plain) {
			t.Errorf("%d bytes came back as %d, %v", size, len(got.Plaintext), err)
		}
	}
}
