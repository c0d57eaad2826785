package evidence_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/audit/evidence"
)

// rotated writes a log of some files with n records each, oldest first, and gives
// the anchor of its end.
func rotated(t *testing.T, dir string, files, n int) (paths []string, anchor string) {
	t.Helper()
	path := filepath.Join(dir, "audit.log")
	l, err := audit.Open(audit.Config{Path: path, Refuse: true, Sync: audit.SyncNone})
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		for j := range n {
			if err := l.Record(audit.Record{Op: "decrypt", UID: fmt.Sprintf("u%d-%d", i, j), Outcome: "ok"}); err != nil {
				t.Fatal(err)
			}
		}
		if i == files-1 {
			break
		}
		old := fmt.Sprintf("%s.%d", path, files-i)
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, old)
	}
	anchor = l.Anchor()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return append(paths, path), anchor
}

// trail is what the KMS logged of probes with these anchors.
func trail(t *testing.T, anchors ...string) evidence.Anchors {
	t.Helper()
	var events []string
	for i, a := range anchors {
		events = append(events, event(fmt.Sprintf("2026-01-02T03:04:%02dZ", i), "probe", a, ""))
	}
	return load(t, `{"Records":[`+strings.Join(events, ",")+`]}`)
}

func event(at, kind, anchor, code string) string {
	return fmt.Sprintf(`{"eventVersion":"1.08","eventTime":%q,"eventSource":"kms.amazonaws.com","eventName":"Encrypt","eventID":"e-%s",
"errorCode":%q,"requestParameters":{"keyId":"k","encryptionContext":{"kms-plugin-cluster":"c","kms-plugin-type":%q,"kms-plugin-audit":%q}}}`, at, at, code, kind, anchor)
}

func load(t *testing.T, data string) evidence.Anchors {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trail.json")
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := evidence.LoadAnchors([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func verify(t *testing.T, paths []string, a evidence.Anchors) *evidence.Report {
	t.Helper()
	r, err := evidence.Verify(paths, a, false)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func text(t *testing.T, r *evidence.Report) string {
	t.Helper()
	var b strings.Builder
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWholeInAnyOrder(t *testing.T) {
	paths, anchor := rotated(t, t.TempDir(), 3, 4)
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		files := []string{paths[order[0]], paths[order[1]], paths[order[2]]}
		r := verify(t, files, nil)
		if !r.Holds || len(r.Chains) != 1 || r.Chains[0].Last != 15 || !strings.Contains(text(t, r), "no anchor: who was root") {
			t.Errorf("order %v: %s", order, text(t, r))
		}
	}
	r := verify(t, paths, trail(t, anchor))
	if !r.Holds || r.Chains[0].Anchored != 15 || !strings.Contains(text(t, r), "logged the digest of the last record at 2026-01-02T03:04:00Z") {
		t.Error(text(t, r))
	}
	r = verify(t, paths[1:], trail(t, anchor))
	if !r.Holds || !strings.Contains(text(t, r), "records before 6 are in none of these files") {
		t.Error(text(t, r))
	}
}

// Nothing is claimed of what no anchor confirms.
func TestClaimEndsWithTheLastAnchor(t *testing.T) {
	paths, _ := rotated(t, t.TempDir(), 1, 9)
	r := verify(t, paths, trail(t, anchorOf(t, paths[0], 3), anchorOf(t, paths[0], 6)))
	if !r.Holds || r.Chains[0].Anchored != 6 || !strings.Contains(text(t, r), "of records 7 to 10 nothing is claimed") {
		t.Error(text(t, r))
	}
}

// anchorOf is the anchor that a probe after record n would have carried.
func anchorOf(t *testing.T, path string, n int) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := bytes.Split(data, []byte("\n"))[n-1]
	r, err := audit.Parse(line)
	if err != nil {
		t.Fatal(err)
	}
	return audit.HeadOf(r, line).Anchor()
}

// Every change of one byte, and of one line, in any file is found when the end is
// anchored. Only the newline at the very end of a file is not evidence.
func TestEverySingleChangeIsFound(t *testing.T) {
	paths, anchor := rotated(t, t.TempDir(), 2, 1)
	anchors := trail(t, anchor)
	n := 0
	for _, p := range paths {
		whole, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		try := func(what string, changed []byte, holds bool) {
			t.Helper()
			n++
			if err := os.WriteFile(p, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if r := verify(t, paths, anchors); r.Holds != holds {
				t.Errorf("%s of %s: holds is %v:\n%s", what, filepath.Base(p), r.Holds, text(t, r))
			}
		}
		for i := range whole {
			changed := slices.Clone(whole)
			changed[i] ^= byte(1 << (i % 7))
			try(fmt.Sprintf("byte %d changed", i), changed, false)
			try(fmt.Sprintf("byte %d removed", i), slices.Delete(slices.Clone(whole), i, i+1), i == len(whole)-1)
			try(fmt.Sprintf("byte %d doubled", i), slices.Insert(slices.Clone(whole), i, whole[i]), false)
		}
		lines := bytes.SplitAfter(bytes.TrimSuffix(whole, []byte("\n")), []byte("\n"))
		lines[len(lines)-1] = append(lines[len(lines)-1], '\n')
		for i := range lines {
			try(fmt.Sprintf("line %d removed", i+1), bytes.Join(slices.Delete(slices.Clone(lines), i, i+1), nil), false)
			try(fmt.Sprintf("line %d doubled", i+1), bytes.Join(slices.Insert(slices.Clone(lines), i, lines[i]), nil), false)
			for j := range i {
				swapped := slices.Clone(lines)
				swapped[i], swapped[j] = swapped[j], swapped[i]
				try(fmt.Sprintf("lines %d and %d swapped", j+1, i+1), bytes.Join(swapped, nil), false)
			}
		}
		try("nothing", whole, true)
	}
	if n < 2000 {
		t.Errorf("only %d changes were tried", n)
	}
}

// Whole files: missing, given twice, with lines of another.
func TestFilesMissingAndDoubled(t *testing.T) {
	dir := t.TempDir()
	paths, anchor := rotated(t, dir, 3, 2)
	other, foreign := rotated(t, t.TempDir(), 1, 2)
	mixed := filepath.Join(dir, "mixed")
	var both []byte
	for _, p := range []string{paths[0], other[0]} {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, data...)
	}
	junk := filepath.Join(dir, "junk")
	if err := os.WriteFile(mixed, both, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(junk, []byte("no\nlog\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files   []string
		anchors evidence.Anchors
		want    string
	}{
		"middle missing":      {[]string{paths[0], paths[2]}, nil, "audit.log:1: records 4 to 6 are missing"},
		"last missing":        {paths[:2], trail(t, anchor), "the files end with record 6, but record 9 was anchored at 2026-01-02T03:04:00Z"},
		"one twice":           {[]string{paths[0], paths[0], paths[1], paths[2]}, nil, "record 1 comes after record 3: out of order, or there twice"},
		"two chains in one":   {[]string{mixed}, nil, "mixed:4: another chain"},
		"no log at all":       {[]string{junk}, nil, "junk:1: no line of this file is an audit record"},
		"log of another node": {paths, trail(t, anchor, foreign), "has 3 records by an anchor of 2026-01-02T03:04:01Z, and none of the files holds it"},
		"rewritten": {other, trail(t, strings.Replace(foreign, foreign[len(foreign)-8:], "00000000", 1)),
			"record 3 is not the one that was anchored"},
	} {
		r := verify(t, c.files, c.anchors)
		if r.Holds || !strings.Contains(text(t, r), c.want) {
			t.Errorf("%s: want %q in\n%s", name, c.want, text(t, r))
		}
	}
	r, err := evidence.Verify(paths, trail(t, anchor, foreign), true)
	if err != nil || !r.Holds || len(r.Elsewhere) != 1 {
		t.Errorf("partial: %v, %+v", err, r)
	}
	r = verify(t, append(slices.Clone(paths), other...), trail(t, anchor, foreign))
	if !r.Holds || len(r.Chains) != 2 {
		t.Error("logs of two instances: " + text(t, r))
	}
}

// The format is held by bytes that are never edited: old logs must verify for ever.
func TestGoldenVector(t *testing.T) {
	const anchor = "766b18065c3426e7:8:bd7add5a403abd32c73e1674419fcb41020289513783e2517ea9600c39bcc2b1"
	files := []string{"testdata/v1.log.1", "testdata/v1.log"}
	r := verify(t, files, trail(t, anchor))
	if !r.Holds || len(r.Chains) != 1 || r.Chains[0].Anchored != r.Chains[0].Last || r.Chains[0].Lost != 2 || r.Chains[0].Gaps != 2 {
		t.Error(text(t, r))
	}
}

func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "x.gz")
	if err := os.WriteFile(broken, []byte{0x1f, 0x8b, 1, 2}, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{filepath.Join(dir, "none"): "no such file", broken: "x.gz", dir: "is a directory"} {
		if _, err := evidence.Verify([]string{path}, nil, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Verify(%q) = %v, want %q", path, err, want)
		}
	}
}

func FuzzVerify(f *testing.F) {
	for _, name := range []string{"testdata/v1.log.1", "testdata/v1.log"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := evidence.Verify([]string{path}, nil, false)
		if err == nil && r.Holds && len(r.Chains) > 0 && int(r.Chains[0].Last-r.Chains[0].First) > bytes.Count(data, []byte("\n")) {
			t.Errorf("more records than lines: %+v", r.Chains[0])
		}
	})
}
