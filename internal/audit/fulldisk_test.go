package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/audit/evidence"
)

// A disk that is full at any byte: what was lost is counted, and told by the first
// record after it; what is there still verifies. A limit on the size of files
// stands for the disk; it counts for a whole process, so a child does it.
func TestFullDiskIsAStatedGap(t *testing.T) {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), limited+"="+t.TempDir())
	if out, err := child.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
}

// fillDisks is that child.
func fillDisks(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	for limit := range uint64(1300) {
		for _, rotate := range []bool{false, true} {
			own := filepath.Join(dir, fmt.Sprintf("%d-%v", limit, rotate))
			if err := errors.Join(os.Mkdir(own, 0o700), fillDisk(filepath.Join(own, "a"), limit, rotate)); err != nil {
				return fmt.Errorf("disk full after %d bytes, rotated %v: %w", limit, rotate, err)
			}
		}
	}
	return nil
}

func fillDisk(path string, limit uint64, rotate bool) error {
	const attempts = 6
	files := []string{path}
	l, failed, err := recordUnderLimit(path, limit, attempts)
	if err == nil && rotate {
		files = append(files, path+".1")
		err = errors.Join(os.Rename(path, path+".1"), l.Reopen())
	}
	if err := errors.Join(err, unlimit(), l.Record(audit.Record{Op: "decrypt"}), l.Close()); err != nil {
		return err
	}
	r, err := evidence.Verify(files, nil, false)
	if err != nil || !r.Holds || len(r.Chains) != 1 {
		return fmt.Errorf("%w: %+v", err, r)
	}
	there := 0
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(data) {
			if rec, err := audit.Parse(bytes.TrimSuffix(line, []byte("\n"))); err == nil && rec.Op == "encrypt" {
				there++
			}
		}
	}
	// A record that lacks but its newline is there, though its operation was refused.
	lost := int(r.Chains[0].Lost)
	if there+lost != attempts || failed < lost || failed > lost+1 || int(l.Failures()) != failed {
		return fmt.Errorf("%d are there, %d refused, %d counted, the log tells of %d", there, failed, l.Failures(), lost)
	}
	return nil
}

func recordUnderLimit(path string, limit uint64, attempts int) (l *audit.Log, failed int, err error) {
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: 1 << 40}); err != nil {
		return nil, 0, err
	}
	if l, err = audit.Open(audit.Config{Path: path, Refuse: true, Sync: audit.SyncNone}); err != nil {
		return nil, 0, err
	}
	for range attempts {
		if l.Record(audit.Record{Op: "encrypt", Outcome: "ok"}) != nil {
			failed++
		}
	}
	return l, failed, nil
}

func unlimit() error {
	return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 1 << 40, Max: 1 << 40})
}

// What a full queue dropped is told too.
func TestDroppedRecordsAreStated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Config{Path: path})
	for range 5000 {
		_ = l.Record(audit.Record{Op: "decrypt", Error: strings.Repeat("x", 1000)})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := errors.Join(l.Run(ctx), l.Close()); err != nil {
		t.Fatal(err)
	}
	r := holds(t, path)
	if c := r.Chains[0]; c.Lost != l.Failures() || c.Lost == 0 || c.Gaps != 1 {
		t.Errorf("%d lost, the log tells of %+v", l.Failures(), c)
	}
}
