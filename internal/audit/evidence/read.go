package evidence

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"kms-plugin.io/internal/audit"
)

// maxLine is longer than any record: see package audit.
const maxLine = 1 << 17

// span is a run of records in one file, each following the one before.
type span struct {
	file      string
	number    int // of the span in its file
	line, end int // first and last
	first     *audit.Record
	head      audit.Head
	last      time.Time // of the last record
	junk      string    // digest of what is before it and no record, "" for nothing
	tail      string    // the same behind it, at the end of the file
	cut       bool      // the file ends within a line
	lost      uint64
	gaps      int
	anchored  Anchor
}

// orphan is a file without any record.
type orphan struct {
	file string
	junk string
	line bool // one line that was never ended: a first record that a crash cut says nothing
}

// open opens a file, also one that logrotate or CloudTrail compressed.
func open(path string) (io.Reader, io.Closer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	r := bufio.NewReaderSize(f, maxLine)
	if magic, _ := r.Peek(2); !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return r, f, nil
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("read %q: %w", path, err), f.Close())
	}
	return z, f, nil
}

// junk is a run of lines that are no records.
type junk struct {
	sum  hash.Hash
	line int // first
}

func (j *junk) add(line int, data []byte) {
	if j.sum == nil {
		j.sum, j.line = sha256.New(), line
	} else {
		j.sum.Write([]byte{'\n'})
	}
	j.sum.Write(data)
}

// take ends the run and is its digest, "" if there was none.
func (j *junk) take() string {
	if j.sum == nil {
		return ""
	}
	d := hex.EncodeToString(j.sum.Sum(nil))
	j.sum = nil
	return d
}

// file reads one file to its spans.
func (c *checker) file(path string) error {
	in, closer, err := open(path)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	defer closer.Close()
	r := bufio.NewReaderSize(in, maxLine)
	f := &reading{checker: c, path: path}
	for line := 1; ; line++ {
		data, whole, err := readLine(r)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read audit log %q: %w", path, err)
		}
		if err != nil && len(data) == 0 {
			break
		}
		f.take(line, data)
		f.open, f.lines = !whole, line
	}
	f.finish()
	return nil
}

// readLine reads a line without its newline. What is too long for a record comes
// in full: it may be what a crash cut, many times over.
func readLine(r *bufio.Reader) (line []byte, whole bool, err error) {
	line, err = r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		var rest []byte
		line = bytes.Clone(line)
		rest, err = r.ReadBytes('\n')
		line = append(line, rest...)
	}
	if err == nil {
		return line[:len(line)-1], true, nil
	}
	return line, false, err
}

// reading is a file on its way through the checker.
type reading struct {
	*checker
	path  string
	cur   *span
	spans int
	junk  junk
	open  bool // the last line had no newline
	lines int
}

func (f *reading) take(line int, data []byte) {
	r, err := audit.Parse(data)
	if err != nil {
		f.junk.add(line, data)
		return
	}
	at, before := f.junk.line, f.junk.take()
	if f.cur == nil || !f.cur.head.Follows(r) {
		f.begin(line, at, before, r)
	} else {
		f.within(line, at, before, r)
	}
	s := f.cur
	s.head, s.end, s.last = audit.HeadOf(r, data), line, r.Time
	if r.Lost > 0 || r.Torn != "" {
		s.lost, s.gaps = s.lost+r.Lost, s.gaps+1
	}
	f.anchored(line, s)
}

// within: a record that follows its predecessor accounts for what is between.
func (f *reading) within(line, at int, before string, r *audit.Record) {
	switch {
	case before == r.Torn:
	case before == "":
		f.found(f.path, line, "record %d accounts for bytes before it that are not there", r.Seq)
	default:
		f.found(f.path, at, "bytes before record %d are no record, and it does not account for them", r.Seq)
	}
}

// begin starts a span; that one begins within a file is a finding.
func (f *reading) begin(line, at int, before string, r *audit.Record) {
	old := f.cur
	f.cur = &span{file: f.path, number: f.spans, line: line, first: r, junk: before}
	f.checker.spans = append(f.checker.spans, f.cur)
	f.spans++
	if old == nil {
		return
	}
	if before != "" {
		f.found(f.path, at, "bytes before record %d are no record", r.Seq)
		f.cur.junk = ""
	}
	if old.head.Chain != r.Chain {
		f.found(f.path, line, "another chain, %s, begins here: what was written before could not be read, or was put here", r.Chain)
		return
	}
	f.follows(old.head, r, f.path, line)
}

// anchored compares a record with what was anchored of it.
func (f *reading) anchored(line int, s *span) {
	for _, a := range f.anchors[s.head.Chain][s.head.Seq] {
		if a.Digest != s.head.Digest {
			f.found(f.path, line, "record %d is not the one that was anchored at %s (event %s)", s.head.Seq, a.At.UTC().Format(time.RFC3339), a.Event)
			continue
		}
		s.anchored = a
	}
}

func (f *reading) finish() {
	tail := f.junk.take()
	if f.cur == nil {
		if tail != "" {
			f.orphans = append(f.orphans, orphan{f.path, tail, f.open && f.lines == 1})
		}
		return
	}
	f.cur.tail, f.cur.cut = tail, f.open && tail != ""
}
