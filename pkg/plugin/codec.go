package plugin

import (
	"sync"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	kmsapi "k8s.io/kms/apis/v2"
)

// wipingCodec is gRPC's own, but seeds do not outlive their call in what it reads
// and writes: a message has its bytes overwritten as soon as nobody needs them. What
// is left are the buffers of the connections, until the next traffic.
type wipingCodec struct{ encoding.CodecV2 }

func newCodec() encoding.CodecV2 { return wipingCodec{encoding.GetCodecV2(proto.Name)} }

// Marshal ends the life of a seed that was opened: what is sent is a copy, which is
// wiped when it was written to the connection.
func (c wipingCodec) Marshal(v any) (mem.BufferSlice, error) {
	out, err := c.CodecV2.Marshal(v)
	r, ok := v.(*kmsapi.DecryptResponse)
	if !ok || err != nil {
		return out, err
	}
	defer out.Free()
	clear(r.Plaintext)
	var answer mem.BufferSlice
	for _, b := range out {
		buf := wiped.Get(b.Len())
		copy(*buf, b.ReadOnlyData())
		clear(b.ReadOnlyData()) // nobody else has it yet
		answer = append(answer, mem.NewBuffer(buf, wiped))
	}
	return answer, nil
}

// Unmarshal leaves the seed to be sealed in the request alone, where the service
// destroys it. The call is unary: its bytes are those of no other message.
func (c wipingCodec) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.CodecV2.Unmarshal(data, v)
	if _, ok := v.(*kmsapi.EncryptRequest); ok {
		for _, b := range data {
			clear(b.ReadOnlyData())
		}
	}
	return err
}

// wiped is a pool whose buffers are empty when they come back. gRPC gives back none
// below a size, so that all are larger.
var wiped = wipingPool{&sync.Pool{New: func() any { b := make([]byte, pooledSize); return &b }}}

const pooledSize = 2 << 10

type wipingPool struct{ *sync.Pool }

func (p wipingPool) Get(length int) *[]byte {
	if length > pooledSize {
		b := make([]byte, length)
		return &b
	}
	b := p.Pool.Get().(*[]byte)
	*b = (*b)[:length]
	return b
}

func (p wipingPool) Put(b *[]byte) {
	all := (*b)[:cap(*b)]
	clear(all)
	if *b = all; len(all) == pooledSize {
		p.Pool.Put(b)
	}
}
