package awskms

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
)

const (
	// maxPrograms bounds what runs at once, whatever the asking process became.
	maxPrograms = 4
	// maxAsked bounds what runs, waits for its turn, or waits to be read.
	maxAsked = 64
)

// serving is one ServeBroker.
type serving struct {
	wire  wire
	turns chan struct{} // capacity maxPrograms

	mu     sync.Mutex
	asked  map[uint64]context.CancelFunc
	failed error // of the first answer that could not be sent
	all    sync.WaitGroup
}

// ServeBroker answers a Broker until conn or ctx ends, then closes conn and ends the
// programs that run. Programs are those that the profile of this process names at the time.
func ServeBroker(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &serving{wire: wire{Conn: conn}, turns: make(chan struct{}, maxPrograms), asked: map[uint64]context.CancelFunc{}}
	in := messages(conn)
	var err error
	for err == nil && in.Scan() {
		err = s.take(ctx, in.Bytes())
	}
	cancel()         // nobody waits for an answer any more
	_ = conn.Close() // else each that is being sent takes its sendTimeout, one after the other
	s.all.Wait()
	return errors.Join(err, in.Err(), s.failed)
}

// take never waits: what comes next may be a cancellation, or the end.
func (s *serving) take(ctx context.Context, message []byte) error {
	var r brokering
	if err := json.Unmarshal(message, &r); err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if end := s.asked[r.ID]; r.Cancel || end != nil {
		if end != nil {
			end()
		}
		return nil
	}
	if len(s.asked) == maxAsked {
		return fmt.Errorf("broker: more than %d requests at once", maxAsked)
	}
	limit := fetchTimeout
	if r.Limit > 0 {
		limit = min(limit, r.Limit)
	}
	ctx, end := context.WithTimeout(ctx, limit)
	s.asked[r.ID] = end
	s.all.Go(func() {
		s.answer(ctx, r)
		end()
	})
	return nil
}

func (s *serving) answer(ctx context.Context, r brokering) {
	defer func() { // only then: what waits to be sent is under way too
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.asked, r.ID)
	}()
	answer := brokered{ID: r.ID}
	c, err := s.inTurn(ctx, r)
	if answer.Credentials = c; err != nil {
		answer.Err = &brokerError{Text: unquoted(err), Away: sourceAway(err)}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	if err := s.wire.send(answer); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(ctx.Err(), context.Canceled) { // an answer that nobody reads is dropped
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failed = errors.Join(s.failed, err)
	}
}

func (s *serving) inTurn(ctx context.Context, r brokering) (aws.Credentials, error) {
	select {
	case s.turns <- struct{}{}:
	case <-ctx.Done():
		return aws.Credentials{}, fmt.Errorf("wait for other programs: %w", ctx.Err())
	}
	defer func() { <-s.turns }()
	return r.run(ctx)
}

func (r brokering) run(ctx context.Context) (aws.Credentials, error) {
	cfg, err := loadChain(ctx, Config{CABundle: r.CABundle, Proxy: r.Proxy}, r.Region)
	if err != nil {
		return aws.Credentials{}, err
	}
	if _, profile := sources(cfg); !startsProgram(profile) {
		return aws.Credentials{}, errors.New("the profile has no credential_process any more; restart kms-plugin")
	}
	return retrieve(ctx, cfg.Credentials)
}
