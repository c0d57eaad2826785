package audit_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"kms-plugin.io/internal/audit"
)

// lines are the records of a file, but those that say it was opened.
func lines(t *testing.T, path string) []audit.Record {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []audit.Record
	for s := bufio.NewScanner(f); s.Scan(); {
		var r audit.Record
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			t.Fatalf("line %q: %v", s.Text(), err)
		}
		if r.Op != audit.OpOpen {
			out = append(out, r)
		}
	}
	return out
}

func open(t *testing.T, c audit.Config) *audit.Log {
	t.Helper()
	l, err := audit.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestQueuedRecordsAreWrittenInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Config{Path: path})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	const n = 3000
	for range n {
		if err := l.Record(audit.Record{Op: "encrypt", UID: "a\"b\n", Outcome: "ok"}); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := errors.Join(<-done, l.Close()); err != nil {
		t.Fatal(err)
	}
	got := lines(t, path)
	if len(got) != n || got[0].UID != "a\"b\n" || got[0].Time.IsZero() {
		t.Fatalf("%d records, first %+v", len(got), got[0])
	}
	for i, r := range got {
		if r.Seq != uint64(i+2) {
			t.Fatalf("record %d has number %d", i, r.Seq)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
}

// A queue that nobody empties never blocks an operation.
func TestFullQueueDropsAndCounts(t *testing.T) {
	told := 0
	l := open(t, audit.Config{Path: filepath.Join(t.TempDir(), "a"), OnError: func(error) { told++ }})
	for range 5000 {
		if err := l.Record(audit.Record{Op: "decrypt", Error: strings.Repeat("x", 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	if l.Failures() < 800 || l.Failures() > 1200 || told != int(l.Failures()) {
		t.Errorf("%d failures counted, %d told; want some 1000, for only 4 MB fit", l.Failures(), told)
	}
}

// What a caller sends as its uid costs at most a kilobyte of the queue.
func TestHugeFieldIsCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Config{Path: path, Refuse: true})
	if err := l.Record(audit.Record{Op: "decrypt", UID: strings.Repeat("ü", 1<<20), Outcome: "ok"}); err != nil {
		t.Fatal(err)
	}
	got := lines(t, path)
	if len(got) != 1 || len(got[0].UID) > 1100 || !strings.HasSuffix(got[0].UID, "...") || got[0].Outcome != "ok" {
		t.Errorf("%d records, uid of %d bytes", len(got), len(got[0].UID))
	}
}

// Each caller learns the fate of its own record, whoever else is writing.
func TestRefuseAnswersForTheCallersOwnRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Config{Path: path, Refuse: true})
	var good atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 500 {
				if l.Record(audit.Record{Op: "encrypt", Outcome: "ok"}) == nil {
					good.Add(1)
				}
			}
		})
	}
	all.Go(func() { _ = l.Close() })
	all.Wait()
	if n := len(lines(t, path)); n != int(good.Load()) || 4000-n != int(l.Failures()) {
		t.Errorf("%d lines in the file, %d were promised, %d failures counted", n, good.Load(), l.Failures())
	}
}

func TestRefuse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Config{Path: path, Refuse: true})
	if err := l.Record(audit.Record{Op: "encrypt", Outcome: "ok"}); err != nil {
		t.Fatal(err)
	}
	if n := len(lines(t, path)); n != 1 {
		t.Errorf("%d records are on disk when Record returns, want 1", n)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Record(audit.Record{Op: "encrypt"}); err == nil || l.Failures() != 1 {
		t.Errorf("Record to a log that cannot be written = %v, want an error", err)
	}
}

func TestReopenAfterRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Config{Path: path, Refuse: true})
	record := func() {
		t.Helper()
		if err := l.Record(audit.Record{Op: "encrypt"}); err != nil {
			t.Fatal(err)
		}
	}
	record()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	record()
	if a, b := len(lines(t, path+".1")), len(lines(t, path)); a != 1 || b != 1 {
		t.Errorf("%d and %d records, want one in each file", a, b)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	wide := filepath.Join(dir, "wide")
	if err := errors.Join(os.WriteFile(wide, nil, 0o600), os.Chmod(wide, 0o644), os.Symlink(wide, filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		wide: "mode 0644", filepath.Join(dir, "link"): "symbolic links", dir: "is a directory", "/nonexistent/a": "no such file",
	} {
		if _, err := audit.Open(audit.Config{Path: path}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q) = %v, want %q", path, err, want)
		}
	}
}

func TestEncodingIsThatOfJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := open(t, audit.Config{Path: path, Refuse: true})
	for _, s := range []string{"", "plain", "a\"b\\c", "<&>", "\x00\n\t", "ü\u2028", strings.Repeat("x", 1000)} {
		if err := l.Record(audit.Record{Op: s, UID: s, KeyID: s, KEK: s, LocalKEK: s, RequestID: s, Outcome: s, Error: s}); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var r audit.Record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		want, err := json.Marshal(r)
		if err != nil || !bytes.Equal(bytes.TrimRight(line, "\n"), want) {
			t.Errorf("line is\n%s, json.Marshal gives\n%s (%v)", line, want, err)
		}
	}
}

func TestOff(t *testing.T) {
	l := open(t, audit.Config{})
	if err := l.Record(audit.Record{}); err != nil {
		t.Error(err)
	}
	var none *audit.Log
	if err := none.Record(audit.Record{}); err != nil {
		t.Error(err)
	}
}

func TestDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, fields []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllSubmatch(doc, -1) {
		listed = append(listed, string(m[1]))
	}
	for i := range reflect.TypeFor[audit.Record]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[audit.Record]().Field(i).Tag.Get("json"), ",")
		fields = append(fields, name)
	}
	if !slices.Equal(listed, fields) {
		t.Errorf("docs/audit.md lists %q, the record has %q", listed, fields)
	}
}

// Without a path there is no log, and its end is no loss.
func TestNoLog(t *testing.T) {
	l := open(t, audit.Config{OnError: func(err error) { t.Errorf("told of %v", err) }})
	if err := l.Record(audit.Record{Op: "encrypt"}); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil || l.Failures() != 0 {
		t.Errorf("Run = %v, %d failures", err, l.Failures())
	}
}
