package audit_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/audit"
)

// Any bytes left in the log by a crash, a full disk or somebody: the next start takes
// it up, keeps every byte of it, and adds records that follow each other.
func FuzzTail(f *testing.F) {
	path := filepath.Join(f.TempDir(), "audit.log")
	open := func(t testing.TB) *audit.Log {
		l, err := audit.Open(audit.Config{Path: path, Sync: "none", Refuse: true})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open(f)
	for range 2 {
		if err := l.Record(audit.Record{Op: "encrypt", Outcome: "ok"}); err != nil {
			f.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(whole[:len(whole)-20])
	f.Add(append([]byte("\x00\x00\x00\n"), whole...))
	f.Add([]byte(`{"chain":"0123456789abcdef","seq":18446744073709551615,"prev":"` + strings.Repeat("0", 64) + `"}`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t)
		for range 2 {
			if err := l.Record(audit.Record{Op: "decrypt", Outcome: "ok"}); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(after), string(data)) {
			t.Fatalf("what was in the log is not its beginning any more, %v", err)
		}
		lines := strings.Split(strings.TrimSuffix(string(after), "\n"), "\n")
		first, err := audit.Parse([]byte(lines[len(lines)-2]))
		if err != nil {
			t.Fatalf("last but one: %v", err)
		}
		last, err := audit.Parse([]byte(lines[len(lines)-1]))
		if err != nil || !audit.HeadOf(first, []byte(lines[len(lines)-2])).Follows(last) {
			t.Fatalf("last: %v, it does not follow the one before", err)
		}
	})
}
