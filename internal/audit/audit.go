// Package audit is the append-only record of what was done with the keys: one
// JSON object a line, each naming the digest of the line before (docs/audit.md).
// It is no log for people and holds no bytes of any key. It must not know what an
// operation does; package evidence reads what is written here.
package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Sync says when what was written must survive a loss of power.
type Sync string

// The policies. A crash of the process alone loses nothing that was written.
const (
	SyncNone     Sync = "none"     // when the kernel likes
	SyncInterval Sync = "interval" // within syncInterval; "" is this
	SyncEach     Sync = "each"     // after every write; with Refuse before its operation is answered
)

// syncInterval is what a loss of power may cost with SyncInterval.
const syncInterval = time.Second

// Config is where records go and what happens when they cannot.
type Config struct {
	Path    string // "" drops all records
	Refuse  bool   // write each record before its operation is answered, and fail it otherwise
	Sync    Sync
	OnError func(error) // told of each failure; must not block
}

// maxPending bounds the bytes that wait for the disk: some ten thousand records.
const maxPending = 4 << 20

// Log is safe for concurrent use.
type Log struct {
	config   Config
	failures atomic.Uint64
	wake     chan struct{}        // capacity 1: records wait
	anchor   atomic.Pointer[Head] // last record that Sync promises to keep

	pendingMu sync.Mutex
	pending   []byte // encoded records, not yet in the chain, each with a newline
	spare     []byte // the other of two buffers
	dropped   uint64 // for a full queue, since the last flush

	mu     sync.Mutex // held across writes, not across a late fsync
	file   *os.File
	head   Head   // of what is in the file
	open   bool   // the file ends within a line
	due    notice // told before the next record
	doubt  bool   // a write failed: what became of batch only the file knows
	batch  batch
	out    []byte
	synced uint64 // number of the last record that survives a loss of power
}

// Open opens or creates the file, mode 0600, and goes on with the chain that it,
// or the file rotated before it, ends with. Run must run for records to be
// written unless Config.Refuse is set.
func Open(c Config) (*Log, error) {
	l := &Log{config: c, wake: make(chan struct{}, 1)}
	if c.Path == "" {
		return l, nil
	}
	return l, l.Reopen()
}

// Reopen opens the path again, as after a rotation by logrotate. The first record
// of a new file holds the digest of the last one of the old. On an error the old
// file stays in use.
func (l *Log) Reopen() error {
	if l.config.Path == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := openAppend(l.config.Path, l.file)
	if err != nil || f == nil {
		return err
	}
	end, err := readTail(f)
	if err != nil {
		return errors.Join(fmt.Errorf("read audit log %q: %w", l.config.Path, err), f.Close())
	}
	if l.file == nil {
		l.start(end)
	} else {
		l.leave()
	}
	l.file, l.open, l.due.open = f, end.open, true
	lost, err := l.write(nil)
	_ = l.failed(lost, err) // it stays due
	return nil
}

// start takes up the chain that the log ends with, or the file before it.
func (l *Log) start(end tail) {
	if end.empty {
		end = before(l.config.Path)
		l.due.leave(end.torn)
		end.torn = ""
	}
	if end.head.Seq == 0 {
		end.head = newChain()
	}
	l.head, l.due.torn = end.head, end.torn
}

// leave ends the use of a file; the next record, in another file, tells what the
// last write to this one has lost.
func (l *Log) leave() {
	_ = l.settle()
	l.due.leave(l.due.torn)
	if l.config.Sync != SyncNone {
		_ = l.failed(0, l.file.Sync())
	}
	_ = l.file.Close()
}

// Record takes one record, whose time and place it sets. With Refuse it has been
// given to the kernel when Record returns nil; otherwise it is queued, never waits
// for the disk and never fails: a full queue drops it, counts and tells OnError.
// Fields longer than maxField are cut.
func (l *Log) Record(r Record) error {
	if l == nil || l.config.Path == "" {
		return nil
	}
	r.Lost, r.Torn = 0, ""
	if l.config.Refuse {
		return l.writeNow(r)
	}
	l.pendingMu.Lock()
	full := len(l.pending) > maxPending
	if full {
		l.dropped++
	} else {
		l.pending = append(stamp(r).append(l.pending), '\n')
	}
	l.pendingMu.Unlock()
	if full {
		_ = l.failed(1, fmt.Errorf("audit queue of %d bytes is full, a record is lost", maxPending))
		return nil
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

func stamp(r Record) *Record {
	r.Time = time.Now().UTC()
	return &r
}

// writeNow answers for its own record alone, so that nobody takes the loss of
// another's for a success.
func (l *Log) writeNow(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spare = append(stamp(r).append(l.spare[:0]), '\n')
	_, err := l.write(l.spare)
	return l.failed(1, err)
}

// Run writes queued records until ctx ends and the queue is empty.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for {
		select {
		case <-l.wake:
			_ = l.flush() // counted and told; the next records may fare better
		case <-tick.C:
			l.syncLate()
		case <-ctx.Done():
			return l.flush()
		}
	}
}

// keepBuffer is how large a buffer may stay in memory after a burst.
const keepBuffer = 64 << 10

// flush writes what waits. Two buffers take turns, so that a burst costs one
// write and recording goes on meanwhile. What cannot be written is lost.
func (l *Log) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pendingMu.Lock()
	out, dropped := l.pending, l.dropped
	l.pending, l.spare, l.dropped = l.spare[:0], nil, 0
	l.pendingMu.Unlock()
	if dropped > 0 {
		defer l.lose(dropped, fmt.Errorf("the queue of %d bytes was full", maxPending)) // they came after those in out
	}
	lost, err := l.write(out)
	if cap(out) <= keepBuffer {
		l.spare = out
	}
	if cap(l.out) > keepBuffer {
		l.out = nil
	}
	return l.failed(lost, err)
}

func (l *Log) failed(records int, err error) error {
	if err != nil {
		l.failures.Add(uint64(records))
		if l.config.OnError != nil {
			l.config.OnError(err)
		}
	}
	return err
}

// Failures counts records that could not be written.
func (l *Log) Failures() uint64 { return l.failures.Load() }

// Anchor is what stands for all records that are safe by the policy of Sync, to be
// kept where nobody of this node can change it; "" if there is none.
func (l *Log) Anchor() string {
	if h := l.anchor.Load(); h != nil {
		return h.Anchor()
	}
	return ""
}

// Close closes the file; Run must have ended.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	if l.doubt || l.due.any() {
		_, _ = l.write(nil) // a last try to tell what was lost, which is counted
	}
	f := l.file
	l.file = nil
	if l.config.Sync == SyncNone {
		return f.Close()
	}
	return errors.Join(f.Sync(), f.Close())
}
