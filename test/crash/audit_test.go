package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/audit/evidence"
)

// The log of a plugin that starts again, goes on, and is told three times that
// logrotate has moved its file. Whenever it is killed, kmsctl audit verify finds
// nothing as it is, all records that were answered for are in it, and the next start
// goes on with the chain.
func TestAuditKilledAtEveryWritePoint(t *testing.T) {
	begin := func(dir string) *exec.Cmd {
		path := filepath.Join(dir, "audit.jsonl")
		if err := record(path, 2); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = []string{victim + "=audit-rotate " + path}
		return cmd
	}
	AtEveryPoint(t, 20, begin, func(dir, said string) error {
		path := filepath.Join(dir, "audit.jsonl")
		answered := 2 + uint64(strings.Count(said, "answered\n"))
		last, err := verified(path, answered)
		if err != nil {
			return fmt.Errorf("as it was left: %w", err)
		}
		if err := record(path, 1); err != nil {
			return fmt.Errorf("the next start: %w", err)
		}
		if _, err := verified(path, last+1); err != nil {
			return fmt.Errorf("after the next start: %w", err)
		}
		return nil
	})
}

// verified says with which number the log ends, of which nothing may be found, that
// is one chain from its first record on, and has at least so many.
func verified(path string, least uint64) (last uint64, err error) {
	files, err := filepath.Glob(path + "*")
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode() != 0o600 {
			return 0, fmt.Errorf("%s: %v, %w; want mode 0600", f, info, err)
		}
	}
	r, err := evidence.Verify(files, nil, false)
	if err == nil && (!r.Holds || len(r.Chains) != 1 || r.Chains[0].First != 1 || r.Chains[0].Lost > 0 || r.Chains[0].Last < least) {
		err = fmt.Errorf("%+v, want %d records", r, least)
	}
	if err != nil {
		return 0, err
	}
	return r.Chains[0].Last, nil
}

// recordAndRotate is what the plugin that is killed does. It says for what records it
// would have answered an operation.
func recordAndRotate(path string) error {
	l, err := audit.Open(audit.Config{Path: path, Refuse: true, Sync: audit.SyncEach})
	if err != nil {
		return err
	}
	for range 3 {
		for range 2 {
			if err := l.Record(audit.Record{Op: "encrypt", Outcome: "ok"}); err != nil {
				return err
			}
			fmt.Println("answered")
		}
		if err := rotate(path); err != nil {
			return err
		}
		if err := l.Reopen(); err != nil {
			return err
		}
	}
	return l.Close()
}

// rotate is what logrotate does.
func rotate(path string) error {
	for i := 3; i > 1; i-- {
		older := fmt.Sprintf("%s.%d", path, i)
		if err := os.Rename(fmt.Sprintf("%s.%d", path, i-1), older); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.Rename(path, path+".1")
}
