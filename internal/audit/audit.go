// Package audit is the append-only record of what was done with the keys: one
// JSON object a line (docs/audit.md). It is no log for people and holds no bytes
// of any key. It must not know what an operation does.
package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Record is one line. docs/audit.md describes the fields.
type Record struct {
	Time      time.Time `json:"time"`
	Seq       uint64    `json:"seq"`
	Op        string    `json:"op"`
	UID       string    `json:"uid,omitempty"`
	KeyID     string    `json:"keyID,omitempty"`
	KEK       string    `json:"kek,omitempty"`
	LocalKEK  string    `json:"localKEK,omitempty"`
	RequestID string    `json:"requestID,omitempty"`
	Outcome   string    `json:"outcome"`
	Error     string    `json:"error,omitempty"`
}

// Config is where records go and what happens when they cannot.
type Config struct {
	Path    string      // "" drops all records
	Refuse  bool        // write each record before its operation is answered, and fail it otherwise
	OnError func(error) // told of each failure; must not block
}

// queueSize bounds the records that wait for the disk.
const queueSize = 16384

// Log is safe for concurrent use.
type Log struct {
	config   Config
	seq      atomic.Uint64
	failures atomic.Uint64
	queue    chan Record

	mu   sync.Mutex
	file *os.File
}

// Open opens or creates the file, mode 0600. Run must run for records to be
// written unless Config.Refuse is set.
func Open(c Config) (*Log, error) {
	l := &Log{config: c, queue: make(chan Record, queueSize)}
	if c.Path == "" {
		return l, nil
	}
	return l, l.Reopen()
}

// Reopen opens the path again, as after a rotation by logrotate.
func (l *Log) Reopen() error {
	if l.config.Path == "" {
		return nil
	}
	f, err := openAppend(l.config.Path)
	if err != nil {
		return fmt.Errorf("open audit log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close() // every write to it is done
	}
	l.file = f
	return nil
}

func openAppend(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%q is not a regular file", path)
	}
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("%q has mode %#o and others could read or change it: chmod 600 it", path, info.Mode().Perm())
	}
	if err == nil {
		err = endLine(f, info.Size())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// endLine closes a line that a crash left open.
func endLine(f *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	last := make([]byte, 1)
	if _, err := f.ReadAt(last, size-1); err != nil {
		return err
	}
	if last[0] == '\n' {
		return nil
	}
	_, err := f.Write([]byte("\n"))
	return err
}

// Record takes one record, whose time and number it sets. With Refuse it has
// been given to the kernel when Record returns nil; otherwise it is queued, never
// blocks and never fails: a full queue drops it, counts and tells OnError.
func (l *Log) Record(r Record) error {
	if l == nil || l.config.Path == "" {
		return nil
	}
	r.Time, r.Seq = time.Now().UTC(), l.seq.Add(1)
	if l.config.Refuse {
		return l.failed(l.write([]Record{r}))
	}
	select {
	case l.queue <- r:
	default:
		_ = l.failed(fmt.Errorf("audit queue of %d records is full, one is lost", queueSize))
	}
	return nil
}

// Run writes queued records until ctx ends and the queue is empty.
func (l *Log) Run(ctx context.Context) error {
	for {
		select {
		case r := <-l.queue:
			_ = l.failed(l.write(l.batch(r)))
		case <-ctx.Done():
			return l.drain()
		}
	}
}

func (l *Log) drain() error {
	for {
		select {
		case r := <-l.queue:
			if err := l.failed(l.write(l.batch(r))); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// batch takes what else waits, so that a burst costs one write.
func (l *Log) batch(first Record) []Record {
	out := []Record{first}
	for len(out) < 256 {
		select {
		case r := <-l.queue:
			out = append(out, r)
		default:
			return out
		}
	}
	return out
}

func (l *Log) write(records []Record) error {
	var b []byte
	for _, r := range records {
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		b = append(append(b, line...), '\n')
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return errors.New("audit log is closed")
	}
	_, err := l.file.Write(b)
	return err
}

func (l *Log) failed(err error) error {
	if err != nil {
		l.failures.Add(1)
		if l.config.OnError != nil {
			l.config.OnError(err)
		}
	}
	return err
}

// Failures counts records that could not be written.
func (l *Log) Failures() uint64 { return l.failures.Load() }

// Close closes the file; Run must have ended.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file = nil
	return errors.Join(f.Sync(), f.Close())
}
