package audit

import (
	"bytes"
	"errors"
	"strings"
	"time"
)

// notice is what the next record must tell before it.
type notice struct {
	open bool   // the log was opened
	lost uint64 // records
	why  string
	torn string // digest of bytes behind the last whole record
	past string // the same of files before this one, each with a "+" behind it
}

func (n notice) any() bool { return n.open || n.lost > 0 || n.tornAll() != "" }

// leave keeps what is torn at the end of a file that is no longer written to.
func (n *notice) leave(torn string) {
	if n.torn = ""; torn != "" {
		n.past += torn + "+"
	}
}

func (n notice) tornAll() string { return strings.TrimSuffix(n.past+n.torn, "+") }

// batch is what one write was to append.
type batch struct {
	notice  bool // its first record is a notice
	told    uint64
	records uint64
}

// write puts encoded records into the chain and appends them; the caller holds
// mu. It returns how many are lost. A write that fails may have left anything in
// the file, also a torn line: the next one looks first.
func (l *Log) write(records []byte) (lost int, err error) {
	n := bytes.Count(records, []byte{'\n'})
	if l.file == nil && n == 0 {
		return 0, nil // there is no log, and nothing for it
	}
	err = errors.New("audit log is closed")
	if l.file != nil {
		err = l.settle()
	}
	if err != nil {
		l.lose(uint64(n), err)
		return n, err
	}
	head := l.head
	out := l.begin(&head)
	l.batch.records = uint64(n)
	for line := range bytes.Lines(records) {
		from := len(out)
		out = head.link(append(out, line[:len(line)-1]...), from)
	}
	if l.out = out[:0]; len(out) == 0 {
		return 0, nil
	}
	written, err := l.file.Write(out)
	if err != nil {
		l.doubt, l.due.why = true, err.Error()
		whole := bytes.Count(out[:written], []byte{'\n'}) - (bytes.Count(out, []byte{'\n'}) - n)
		return n - max(0, whole), err
	}
	l.head, l.open, l.due = head, false, notice{}
	if err := l.safe(); err != nil {
		return n, err
	}
	return 0, nil
}

// begin ends an open line and puts down what is due.
func (l *Log) begin(head *Head) []byte {
	out := l.out[:0]
	if l.open {
		out = append(out, '\n')
	}
	d := l.due
	l.batch = batch{notice: d.any(), told: d.lost}
	if !d.any() {
		return out
	}
	r := Record{Time: time.Now().UTC(), Op: OpGap, Outcome: "lost", Error: d.why, Lost: d.lost, Torn: d.tornAll()}
	if d.open {
		r.Op = OpOpen
	}
	if d.lost == 0 {
		r.Outcome = "ok"
	}
	from := len(out)
	return head.link(r.append(out), from)
}

// settle looks into the file after a failed write and goes on after its last
// whole record: what of the batch is not there is lost.
func (l *Log) settle() error {
	if !l.doubt {
		return nil
	}
	end, err := readTail(l.file)
	if err != nil {
		return err
	}
	kept := uint64(0)
	if end.head.Chain == l.head.Chain && end.head.Seq >= l.head.Seq {
		kept = end.head.Seq - l.head.Seq
		l.head = end.head
	}
	if l.batch.notice && kept > 0 {
		kept--
		l.due = notice{lost: l.due.lost - l.batch.told, why: l.due.why}
	}
	l.due.lost += l.batch.records - min(kept, l.batch.records)
	l.due.torn, l.open, l.doubt = end.torn, end.open, false
	return nil
}

// lose notes records that never came to the file.
func (l *Log) lose(n uint64, why error) {
	if n > 0 {
		l.due.lost += n
		l.due.why = why.Error()
	}
}

// safe makes what was written survive as the policy demands; the caller holds mu.
func (l *Log) safe() error {
	if l.config.Sync == SyncEach {
		if err := l.file.Sync(); err != nil {
			return err
		}
	}
	if l.config.Sync == SyncEach || l.config.Sync == SyncNone {
		h := l.head
		l.anchor.Store(&h)
	}
	return nil
}

// syncLate is the fsync of SyncInterval. Nobody waits for it.
func (l *Log) syncLate() {
	l.mu.Lock()
	f, h := l.file, l.head
	due := f != nil && (l.config.Sync == SyncInterval || l.config.Sync == "") && h.Seq != l.synced
	l.mu.Unlock()
	if !due {
		return
	}
	err := f.Sync()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != f {
		return // left, and synced then
	}
	if err = l.failed(0, err); err == nil {
		l.synced = h.Seq
		l.anchor.Store(&h)
	}
}
