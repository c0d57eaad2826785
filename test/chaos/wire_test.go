//go:build e2e

package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// wire is one connection of a gRPC client that costs a part of the usual one, which for
// 10,000 calls at once takes more of the machine than the plugin. Like that one it keeps the
// server's limit of streams, and what exceeds it waits in the order it came.
type wire struct {
	conn net.Conn
	w    *bufio.Writer
	fr   *http2.Framer // written by send, read by receive
	enc  *hpack.Encoder
	head bytes.Buffer
	wake chan struct{} // capacity 1

	mu      sync.Mutex
	waiting []*wireCall
	open    map[uint32]*wireCall
	control []func() error // frames that wait for send
	next    uint32
	streams int // limit of the server
	window  int // bytes it still takes
	err     error
}

type wireCall struct {
	id     uint32 // 0: not sent
	method string
	ctx    context.Context
	body   []byte
	reply  []byte
	done   chan error // capacity 1
}

var _ grpc.ClientConnInterface = (*wire)(nil)

func dialWire(t *testing.T, socket string) *wire {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c := &wire{conn: conn, w: bufio.NewWriterSize(conn, 32<<10), wake: make(chan struct{}, 1), open: map[uint32]*wireCall{}, next: 1, window: 65535}
	c.fr = http2.NewFramer(c.w, bufio.NewReaderSize(conn, 32<<10))
	c.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.head)
	_, err = c.w.WriteString(http2.ClientPreface)
	if err = errors.Join(err, c.fr.WriteSettings()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() }) // ends both
	go func() { c.fail(c.send()) }()
	go func() { c.fail(c.receive()) }()
	return c
}

// NewStream implements grpc.ClientConnInterface.
func (c *wire) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("KMS v2 has no streams")
}

// Invoke implements grpc.ClientConnInterface.
func (c *wire) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	body, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 5, 2048), args.(proto.Message))
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(body[1:], uint32(len(body)-5))
	call := &wireCall{method: method, ctx: ctx, body: body, done: make(chan error, 1)}
	c.mu.Lock()
	if err = c.err; err == nil {
		c.waiting = append(c.waiting, call)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.awake()
	select {
	case err := <-call.done:
		if err != nil {
			return err
		}
		return proto.Unmarshal(call.reply[5:], reply.(proto.Message))
	case <-ctx.Done():
		c.abandon(call)
		return status.FromContextError(ctx.Err()).Err()
	}
}

func (c *wire) awake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// abandon gives the stream of a call back, if it has one.
func (c *wire) abandon(call *wireCall) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id := call.id; c.open[id] == call {
		delete(c.open, id)
		c.control = append(c.control, func() error { return c.fr.WriteRSTStream(id, http2.ErrCodeCancel) })
		c.awake()
	}
}

// take is what may be sent now.
func (c *wire) take() (control []func() error, calls []*wireCall, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	control, c.control = c.control, nil
	for c.streams > len(c.open) && len(c.waiting) > 0 && len(calls) < 64 {
		call := c.waiting[0]
		if call.ctx.Err() == nil {
			if c.window < len(call.body) {
				break
			}
			c.window -= len(call.body)
			call.id, c.next = c.next, c.next+2
			c.open[call.id] = call
			calls = append(calls, call)
		}
		c.waiting = c.waiting[1:]
	}
	return control, calls, c.err
}

func (c *wire) send() error {
	for {
		control, calls, err := c.take()
		if err == nil && len(control)+len(calls) == 0 {
			if err = c.w.Flush(); err == nil {
				<-c.wake
			}
		}
		for _, f := range control {
			err = errors.Join(err, f())
		}
		for _, call := range calls {
			err = errors.Join(err, c.start(call))
		}
		if err != nil {
			return err
		}
	}
}

func (c *wire) start(call *wireCall) error {
	c.head.Reset()
	fields := [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", call.method}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"}}
	if at, ok := call.ctx.Deadline(); ok {
		fields = append(fields, [2]string{"grpc-timeout", strconv.Itoa(int(max(1, time.Until(at).Milliseconds()))) + "m"})
	}
	for _, f := range fields {
		if err := c.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return err
		}
	}
	err := c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: call.id, BlockFragment: c.head.Bytes(), EndHeaders: true})
	return errors.Join(err, c.fr.WriteData(call.id, true, call.body))
}

func (c *wire) receive() error {
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			return err
		}
		c.mu.Lock()
		err = c.handle(f)
		c.mu.Unlock()
		if err != nil {
			return err
		}
		c.awake()
	}
}

// handle acts on one frame; the caller holds mu.
func (c *wire) handle(f http2.Frame) error {
	call := c.open[f.Header().StreamID]
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if n, ok := f.Value(http2.SettingMaxConcurrentStreams); ok {
			c.streams = int(n)
		}
		if !f.IsAck() {
			c.control = append(c.control, c.fr.WriteSettingsAck)
		}
	case *http2.PingFrame:
		if data := f.Data; !f.IsAck() {
			c.control = append(c.control, func() error { return c.fr.WritePing(true, data) })
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			c.window += int(f.Increment)
		}
	case *http2.DataFrame:
		if n := f.Length; n > 0 {
			c.control = append(c.control, func() error { return c.fr.WriteWindowUpdate(0, n) })
		}
		if call != nil {
			call.reply = append(call.reply, f.Data()...)
		}
	case *http2.MetaHeadersFrame:
		if call != nil && f.StreamEnded() {
			c.end(call, outcome(f))
		}
	case *http2.RSTStreamFrame:
		if call != nil {
			c.end(call, fmt.Errorf("stream was reset: %s", f.ErrCode))
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("server goes away: %s", f.ErrCode)
	}
	return nil
}

func outcome(f *http2.MetaHeadersFrame) error {
	code, text := codes.Internal, "no grpc-status"
	for _, h := range f.RegularFields() {
		switch h.Name {
		case "grpc-status":
			n, _ := strconv.Atoi(h.Value)
			code = codes.Code(n)
		case "grpc-message":
			text = h.Value
		}
	}
	return status.Error(code, text)
}

// end answers a call; the caller holds mu.
func (c *wire) end(call *wireCall, err error) {
	delete(c.open, call.id)
	if err == nil && len(call.reply) < 5 {
		err = errors.New("the answer is empty")
	}
	call.done <- err
}

// fail ends the connection and every call on it.
func (c *wire) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = fmt.Errorf("connection lost: %w", err)
	}
	for _, call := range c.open {
		c.end(call, c.err)
	}
	for _, call := range c.waiting {
		call.done <- c.err
	}
	c.waiting = nil
	c.conn.Close()
	c.awake()
}
