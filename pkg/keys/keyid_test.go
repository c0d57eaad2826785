package keys_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"kms-plugin.io/pkg/keys"
)

// vector is one line of testdata/keyids.txt.
type vector struct {
	Name       string            `json:"name"`
	Cluster    string            `json:"cluster"`
	Identity   string            `json:"identity"`
	Material   string            `json:"material"`
	Generation uint64            `json:"generation"`
	Wrapping   keys.Wrapping     `json:"wrapping"`
	Context    map[string]string `json:"context"`
	Recipients []string          `json:"recipients"`
}

func (v vector) facts() keys.Facts {
	return keys.Facts{ClusterID: v.Cluster, Identity: v.Identity, Material: v.Material, Generation: v.Generation,
		Wrapping: v.Wrapping, ContextDigest: keys.Context(v.Context).Digest(), Recipients: v.Recipients}
}

// vectorsAtLeast is how many lines the file had when it was last added to. It
// only grows: a key_id that was once reported stays in etcd.
const vectorsAtLeast = 15

// These key_ids are in etcd. If this test fails, the code is wrong and not the file.
func TestKeyIDVectors(t *testing.T) {
	f, err := os.Open("testdata/keyids.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines, seen := 0, map[string]string{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		if strings.HasPrefix(s.Text(), "#") {
			continue
		}
		lines++
		raw, want, ok := strings.Cut(s.Text(), " -> ")
		d := json.NewDecoder(strings.NewReader(raw))
		d.DisallowUnknownFields()
		var v vector
		if err := d.Decode(&v); err != nil || !ok {
			t.Fatalf("line %q: %v", s.Text(), err)
		}
		if got := keys.KeyID(v.Name, v.facts()); got != want {
			t.Errorf("KeyID(%s) = %q, want %q", raw, got, want)
		}
		if seen[want] != "" {
			t.Errorf("%s and %s have one key_id", raw, seen[want])
		}
		seen[want] = raw
		name, digest, err := keys.SplitKeyID(want)
		if err != nil || name != v.Name || digest != v.facts().Digest() || len(want) > 96 {
			t.Errorf("SplitKeyID(%q) = %q, %q, %v; want %q and the digest, at most 96 bytes", want, name, digest, err, v.Name)
		}
	}
	if s.Err() != nil || lines < vectorsAtLeast {
		t.Errorf("%d vectors, %v; want at least %d: lines are never taken away", lines, s.Err(), vectorsAtLeast)
	}
}

// The order of the recipients is not a fact, and asking changes nothing.
func TestKeyIDIgnoresTheOrderOfRecipients(t *testing.T) {
	given := []string{"c", "a", "b"}
	a := keys.KeyID("k", keys.Facts{Recipients: given})
	if b := keys.KeyID("k", keys.Facts{Recipients: []string{"a", "b", "c"}}); a != b {
		t.Errorf("the order of recipients changes the key_id: %q, %q", a, b)
	}
	if strings.Join(given, "") != "cab" {
		t.Errorf("KeyID sorted its argument: %q", given)
	}
}

// A byte that moves from one fact to the next is another fact.
func TestKeyIDBorders(t *testing.T) {
	seen := map[string]int{}
	for i, f := range []keys.Facts{
		{ClusterID: "ab"}, {ClusterID: "a", Identity: "b"}, {Identity: "ab"}, {Identity: "a", Material: "b"}, {Material: "ab"},
		{Recipients: []string{"ab"}}, {Recipients: []string{"a", "b"}}, {Recipients: []string{"", "ab"}}, {Wrapping: "ab"},
		{Recipients: []string{""}}, {}, {ContextDigest: [16]byte{1}}, {ContextDigest: [16]byte{15: 1}}, {Generation: 1}, {Generation: 1 << 56},
	} {
		d := f.Digest()
		if o, ok := seen[d]; ok {
			t.Errorf("facts %d and %d have one digest %s", o, i, d)
		}
		seen[d] = i
	}
}

const digits = "0123456789abcdef0123456789abcdef"

func TestSplitKeyIDRefuses(t *testing.T) {
	for name, s := range map[string]string{
		"empty":              "",
		"colon":              ":",
		"no name":            ":" + digits,
		"no digits":          "k:",
		"no colon":           "k" + digits,
		"31 digits":          "k:" + digits[:31],
		"33 digits":          "k:" + digits + "0",
		"two colons":         "k::" + digits,
		"colon in name":      "a:b:" + digits,
		"upper-case digits":  "k:" + strings.ToUpper(digits),
		"not hex":            "k:" + digits[:31] + "g",
		"byte before 0":      "k:" + digits[:31] + "/",
		"byte after 9":       "k:" + digits[:31] + ":",
		"backquote":          "k:" + digits[:31] + "`",
		"upper-case name":    "K:" + digits,
		"space in name":      "a b:" + digits,
		"underscore":         "a_b:" + digits,
		"slash":              "../k:" + digits,
		"newline at the end": "k:" + digits + "\n",
		"newline in front":   "\nk:" + digits,
		"newline in name":    "k\n:" + digits,
		"NUL":                "k\x00:" + digits,
		"not UTF-8":          "\xff:" + digits,
		"not ASCII":          "ké:" + digits,
		"name of 64 bytes":   strings.Repeat("k", 64) + ":" + digits,
		"a megabyte":         strings.Repeat("k", 1<<20) + ":" + digits,
		"digits of Unicode":  "k:" + digits[:29] + "٣0",
	} {
		n, d, err := keys.SplitKeyID(s)
		if !errors.Is(err, keys.ErrMalformed) || n != "" || d != "" {
			t.Errorf("%s: SplitKeyID = %q, %q, %v; want ErrMalformed and nothing else", name, n, d, err)
			continue
		}
		if want := "key_id is not of the form <name>:<32 hex digits>"; !strings.Contains(err.Error(), want) || len(err.Error()) > 200 {
			t.Errorf("%s: error %.300q, want %q and none of the input", name, err, want)
		}
	}
}

func FuzzSplitKeyID(f *testing.F) {
	for _, s := range []string{"", ":", "k:" + digits, "a.b-c:" + digits, "k::" + digits, "K:" + digits, digits, "\xff:" + digits} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, digest, err := keys.SplitKeyID(s)
		if err != nil {
			if !errors.Is(err, keys.ErrMalformed) || name+digest != "" {
				t.Fatalf("SplitKeyID(%q) = %q, %q, %v", s, name, digest, err)
			}
			return
		}
		if name+":"+digest != s || len(digest) != 32 || len(s) > 96 || strings.Trim(digest, "0123456789abcdef") != "" ||
			strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || name == "" {
			t.Fatalf("SplitKeyID(%q) accepted %q, %q", s, name, digest)
		}
	})
}
