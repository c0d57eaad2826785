package awskms

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

const (
	// maxBrokered bounds a message; session tokens are a few KiB.
	maxBrokered = 64 << 10
	// sendTimeout is how long the other process may take to make room for a message:
	// the socket holds more than all that is under way, so it is stopped or astray.
	sendTimeout = 5 * time.Second
)

// Broker asks another process, ServeBroker, for the credentials of profiles with a
// credential_process: it was started before this one denied itself to start
// programs, which would also inherit that denial. It can be asked for the credential
// of its own profile, and for nothing else. Safe for concurrent use.
type Broker struct {
	wire wire

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan<- brokered
	gone    bool
}

// brokering is what a broker is told: how to reach STS for the role that a profile
// assumes with what its program gave.
type brokering struct {
	ID       uint64
	Region   string
	CABundle string
	Proxy    string
	Limit    time.Duration `json:",omitempty"` // how long the asker waits; 0: it did not say
	Cancel   bool          `json:",omitempty"` // it waits no longer for the answer with this ID
}

type brokered struct {
	ID          uint64
	Credentials aws.Credentials
	Err         *brokerError `json:",omitempty"`
}

// brokerError is an error of another process: its text, and whether the source was
// away (sourceAway), which is all that is asked of it.
type brokerError struct {
	Text string
	Away bool
}

func (e *brokerError) Error() string { return e.Text }

var errBrokerGone = &brokerError{Text: "the process that starts credential_process has ended; restart kms-plugin", Away: true}

var errBrokerDeaf = &brokerError{Text: fmt.Sprintf("the process that starts credential_process has read nothing for %s", sendTimeout), Away: true}

// NewBroker speaks to the broker at the other end of conn, for the life of the
// process.
func NewBroker(conn net.Conn) *Broker {
	b := &Broker{wire: wire{Conn: conn}, waiting: map[uint64]chan<- brokered{}}
	go b.listen()
	return b
}

func (b *Broker) listen() {
	in := messages(b.wire.Conn)
	for in.Scan() {
		var r brokered
		if json.Unmarshal(in.Bytes(), &r) != nil {
			break
		}
		b.mu.Lock()
		if to := b.waiting[r.ID]; to != nil {
			delete(b.waiting, r.ID)
			to <- r // never waits: capacity 1, one answer
		}
		b.mu.Unlock()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone = true
	for id, to := range b.waiting {
		delete(b.waiting, id)
		to <- brokered{Err: errBrokerGone}
	}
}

func (b *Broker) fetch(ctx context.Context, r brokering) (aws.Credentials, error) {
	if deadline, ok := ctx.Deadline(); ok {
		r.Limit = max(time.Until(deadline), 1)
	}
	answer := make(chan brokered, 1)
	id, err := b.ask(r, answer)
	if err != nil {
		return aws.Credentials{}, err
	}
	select {
	case got := <-answer:
		if got.Err != nil {
			return aws.Credentials{}, got.Err
		}
		return got.Credentials, nil
	case <-ctx.Done():
		if b.forget(id) {
			_ = b.wire.send(brokering{ID: id, Cancel: true}) // else it ends by its limit
		}
		return aws.Credentials{}, fmt.Errorf("credential_process: %w", ctx.Err())
	}
}

func (b *Broker) ask(r brokering, answer chan<- brokered) (uint64, error) {
	b.mu.Lock()
	if b.gone {
		b.mu.Unlock()
		return 0, errBrokerGone
	}
	b.last++
	r.ID = b.last
	b.waiting[r.ID] = answer
	b.mu.Unlock()
	if err := b.wire.send(r); err != nil {
		b.forget(r.ID)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, errBrokerDeaf
		}
		return 0, errBrokerGone
	}
	return r.ID, nil
}

// forget says whether the answer was still awaited.
func (b *Broker) forget(id uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.waiting[id]
	delete(b.waiting, id)
	return ok
}

// wire sends messages of several goroutines.
type wire struct {
	net.Conn
	mu sync.Mutex
}

// send waits sendTimeout at most. What was sent in part ends the connection: the next
// message would be read as the rest of it.
func (w *wire) send(message any) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	n, err := w.Write(append(b, '\n'))
	if err != nil && n > 0 {
		err = errors.Join(err, w.Close())
	}
	return err
}

func messages(r io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxBrokered)
	return s
}
