package evidence_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/audit/evidence"
)

// The forms in which AWS gives events away, and what among them is no anchor.
func TestAnchorsOfCloudTrail(t *testing.T) {
	paths, anchor := rotated(t, t.TempDir(), 1, 2)
	good := event("2026-01-02T03:04:05Z", "probe", anchor, "")
	quoted, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	lookup := `{"Events":[{"EventId":"1","EventName":"Encrypt","CloudTrailEvent":` + string(quoted) + `}]}`
	for name, c := range map[string]struct {
		data string
		want int
	}{
		"file of a trail":      {`{"Records":[` + good + `]}`, 1},
		"lookup-events":        {lookup, 1},
		"events one by one":    {good + "\n" + good + "\n", 1},
		"denied":               {event("2026-01-02T03:04:05Z", "probe", anchor, "AccessDenied"), 0},
		"not a probe":          {event("2026-01-02T03:04:05Z", "local-kek", anchor, ""), 0},
		"no anchor":            {event("2026-01-02T03:04:05Z", "probe", "x:y:z", ""), 0},
		"of another service":   {strings.Replace(good, "kms.amazonaws.com", "s3.amazonaws.com", 1), 0},
		"context is no string": {strings.Replace(good, `"`+anchor+`"`, "7", 1), 0},
		"no parameters":        {`{"Records":[{"eventSource":"kms.amazonaws.com","requestParameters":null}]}`, 0},
		"nothing happened":     {`{"Records":[]}`, 0},
	} {
		r := verify(t, paths, load(t, c.data))
		if r.Anchors != c.want || r.Chains[0].Anchored != uint64(3*c.want) || !r.Holds {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestAnchorsCompressed(t *testing.T) {
	paths, anchor := rotated(t, t.TempDir(), 1, 2)
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(`{"Records":[` + event("2026-01-02T03:04:05Z", "probe", anchor, "") + `]}`)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, paths, load(t, b.String())); r.Anchors != 1 || !r.Holds {
		t.Errorf("%+v", r)
	}
}

// The first time that a head was logged counts: a kept blob is unwrapped for months.
func TestFirstSightOfAnAnchorCounts(t *testing.T) {
	paths, anchor := rotated(t, t.TempDir(), 1, 2)
	r := verify(t, paths, load(t, event("2026-03-01T00:00:00Z", "probe", anchor, "")+event("2026-02-01T00:00:00Z", "probe", anchor, "")))
	if got := r.Chains[0].AnchoredAt.Format("2006-01"); got != "2026-02" || r.Anchors != 1 {
		t.Errorf("anchored in %s by %d anchors", got, r.Anchors)
	}
}

func TestAnchorsUnreadable(t *testing.T) {
	for data, want := range map[string]string{"": "EOF", "{": "unexpected EOF", "[]": "cannot unmarshal", "{}": "no events in it", `{"Events":[{"CloudTrailEvent":"{"}]}`: "CloudTrailEvent"} {
		path := filepath.Join(t.TempDir(), "trail.json")
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := evidence.LoadAnchors([]string{path})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("LoadAnchors of %q = %v, want %q and the file", data, err, want)
		}
	}
	if _, err := evidence.LoadAnchors([]string{"/nonexistent"}); err == nil || !strings.Contains(err.Error(), "anchors: open /nonexistent") {
		t.Errorf("LoadAnchors = %v", err)
	}
}

func FuzzAnchors(f *testing.F) {
	f.Add([]byte(`{"Records":[]}`))
	f.Add([]byte(event("2026-01-02T03:04:05Z", "probe", "0123456789abcdef:1:"+strings.Repeat("0", 64), "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = evidence.LoadAnchors([]string{path})
	})
}
