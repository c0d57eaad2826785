// Package audit is the append-only record of what was done with the keys: one
// JSON object a line (docs/audit.md). It is no log for people and holds no bytes
// of any key. It must not know what an operation does.
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
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

// maxPending bounds the bytes that wait for the disk: some ten thousand records.
const maxPending = 4 << 20

// maxField bounds what a caller's uid or a cloud's message can add to a line, in
// bytes. Everything we make ourselves is shorter.
const maxField = 1 << 10

// Log is safe for concurrent use.
type Log struct {
	config   Config
	failures atomic.Uint64
	wake     chan struct{} // capacity 1: records wait

	pendingMu sync.Mutex
	seq       uint64
	pending   []byte // encoded lines
	spare     []byte // the other of two buffers

	mu   sync.Mutex
	file *os.File
	torn bool // the last write ended within a line
}

// Open opens or creates the file, mode 0600. Run must run for records to be
// written unless Config.Refuse is set.
func Open(c Config) (*Log, error) {
	l := &Log{config: c, wake: make(chan struct{}, 1)}
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
	l.file, l.torn = f, false // openAppend closed an open line
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
// waits for the disk and never fails: a full queue drops it, counts and tells
// OnError. Fields longer than maxField are cut.
func (l *Log) Record(r Record) error {
	if l == nil || l.config.Path == "" {
		return nil
	}
	if l.config.Refuse {
		return l.writeNow(r)
	}
	l.pendingMu.Lock()
	full := len(l.pending) > maxPending
	if !full {
		l.pending = l.encode(l.pending, r)
	}
	l.pendingMu.Unlock()
	if full {
		l.failed(1, fmt.Errorf("audit queue of %d bytes is full, a record is lost", maxPending))
		return nil
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// writeNow answers for its own record alone, so that nobody takes the loss of
// another's for a success.
func (l *Log) writeNow(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pendingMu.Lock()
	l.spare = l.encode(l.spare[:0], r)
	l.pendingMu.Unlock()
	return l.failed(1, l.write(l.spare))
}

// encode numbers a record and appends its line; the caller holds pendingMu.
func (l *Log) encode(b []byte, r Record) []byte {
	l.seq++
	r.Seq, r.Time = l.seq, time.Now().UTC()
	return append(r.append(b), '\n')
}

// Run writes queued records until ctx ends and the queue is empty.
func (l *Log) Run(ctx context.Context) error {
	for {
		select {
		case <-l.wake:
			_ = l.flush() // counted and told; the next records may fare better
		case <-ctx.Done():
			return l.flush()
		}
	}
}

// flush writes what waits. Two buffers take turns, so that a burst costs one
// write and recording goes on meanwhile. What cannot be written is lost.
func (l *Log) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pendingMu.Lock()
	out := l.pending
	l.pending, l.spare = l.spare[:0], nil
	l.pendingMu.Unlock()
	err := l.write(out)
	if cap(out) <= keepBuffer {
		l.spare = out
	}
	return l.failed(bytes.Count(out, []byte{'\n'}), err)
}

// write appends whole lines; the caller holds mu. A full disk may cut a line:
// the next one then starts on a line of its own.
func (l *Log) write(lines []byte) error {
	if len(lines) == 0 {
		return nil
	}
	if l.file == nil {
		return errors.New("audit log is closed")
	}
	if l.torn {
		if _, err := l.file.Write([]byte{'\n'}); err != nil {
			return err
		}
		l.torn = false
	}
	n, err := l.file.Write(lines)
	l.torn = err != nil && n > 0 && lines[n-1] != '\n'
	return err
}

// keepBuffer is how large a buffer may stay in memory after a burst.
const keepBuffer = 64 << 10

// append encodes a record as encoding/json would (a test compares them), without
// its cost: there is one for every call.
func (r *Record) append(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = r.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","seq":`...)
	b = strconv.AppendUint(b, r.Seq, 10)
	b = appendField(b, "op", r.Op, true)
	b = appendField(b, "uid", r.UID, false)
	b = appendField(b, "keyID", r.KeyID, false)
	b = appendField(b, "kek", r.KEK, false)
	b = appendField(b, "localKEK", r.LocalKEK, false)
	b = appendField(b, "requestID", r.RequestID, false)
	b = appendField(b, "outcome", r.Outcome, true)
	b = appendField(b, "error", r.Error, false)
	return append(b, '}')
}

func appendField(b []byte, name, value string, always bool) []byte {
	if value == "" && !always {
		return b
	}
	if len(value) > maxField {
		value = value[:maxField] + "..."
	}
	b = append(append(append(b, ',', '"'), name...), '"', ':')
	if plain(value) {
		return append(append(append(b, '"'), value...), '"')
	}
	quoted, err := json.Marshal(value)
	if err != nil {
		quoted = []byte(`""`) // cannot happen: a string always encodes
	}
	return append(b, quoted...)
}

// plain strings need no escape in JSON.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			return false
		}
	}
	return true
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
