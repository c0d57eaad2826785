package keys_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/pkg/keys"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// entry is a valid entry; its KEK is named after it.
func entry(name string, r keys.Role, at time.Time) keys.Entry {
	return keys.Entry{Name: name, Role: r, ActivateAt: at, Generation: 1, KEK: &kek{identity: "fake:" + name}}
}

func with(e keys.Entry, change func(*keys.Entry)) keys.Entry {
	change(&e)
	return e
}

func TestNewRingRefuses(t *testing.T) {
	w := entry("w", keys.RoleWrite, time.Time{})
	for _, c := range []struct {
		name, cluster string
		wrapping      keys.Wrapping
		entries       []keys.Entry
		want          string
	}{
		{"nothing", "c", keys.WrapDirect, nil, "no key has role write"},
		{"no write key", "c", keys.WrapDirect, []keys.Entry{entry("a", keys.RoleRead, noon), entry("b", keys.RoleRetired, noon)}, "no key has role write"},
		{"cluster empty", "", keys.WrapDirect, []keys.Entry{w}, "cluster id has 0 bytes, 1 to 63"},
		{"cluster long", strings.Repeat("c", 64), keys.WrapDirect, []keys.Entry{w}, "cluster id has 64 bytes"},
		{"cluster newline", "c\n", keys.WrapDirect, []keys.Entry{w}, "not printable ASCII"},
		{"wrapping", "c", "none", []keys.Entry{w}, `wrapping "none" is neither "local-kek" nor "direct"`},
		{"doubled name", "c", keys.WrapDirect, []keys.Entry{w, with(entry("w", keys.RoleRead, noon), func(e *keys.Entry) { e.KEK = &kek{identity: "x"} })}, `key name "w" is used twice`},
		{"tie at zero", "c", keys.WrapDirect, []keys.Entry{w, entry("v", keys.RoleWrite, time.Time{})}, `keys "w" and "v" both have role write and the same activateAt`},
		{"tie in two zones", "c", keys.WrapDirect, []keys.Entry{entry("a", keys.RoleWrite, noon), entry("b", keys.RoleWrite, noon.In(time.FixedZone("x", 3600)))}, `keys "a" and "b" both`},
		{"doubled KEK", "c", keys.WrapDirect, []keys.Entry{w, with(entry("v", keys.RoleRead, noon), func(e *keys.Entry) { e.KEK = w.KEK })}, `keys "w" and "v" are the same KEK under the same encryption context`},
		{"name empty", "c", keys.WrapDirect, []keys.Entry{entry("", keys.RoleWrite, noon)}, `key name "": 1 to 63`},
		{"name long", "c", keys.WrapDirect, []keys.Entry{entry(strings.Repeat("a", 64), keys.RoleWrite, noon)}, "1 to 63"},
		{"name upper", "c", keys.WrapDirect, []keys.Entry{entry("A", keys.RoleWrite, noon)}, `key name "A"`},
		{"name colon", "c", keys.WrapDirect, []keys.Entry{entry("a:b", keys.RoleWrite, noon)}, `key name "a:b"`},
		{"role", "c", keys.WrapDirect, []keys.Entry{entry("a", "primary", noon)}, `key "a": role "primary" is none of write, read, retired`},
		{"role empty", "c", keys.WrapDirect, []keys.Entry{entry("a", "", noon)}, `key "a": role ""`},
		{"generation", "c", keys.WrapDirect, []keys.Entry{with(w, func(e *keys.Entry) { e.Generation = 0 })}, `key "w": generation must be at least 1`},
		{"identity empty", "c", keys.WrapDirect, []keys.Entry{with(w, func(e *keys.Entry) { e.KEK = &kek{} })}, "identity of key w has 0 bytes, 1 to 200"},
		{"identity long", "c", keys.WrapDirect, []keys.Entry{with(w, func(e *keys.Entry) { e.KEK = &kek{identity: strings.Repeat("i", 201)} })}, "identity of key w has 201 bytes"},
		{"identity not ASCII", "c", keys.WrapDirect, []keys.Entry{with(w, func(e *keys.Entry) { e.KEK = &kek{identity: "é"} })}, "not printable ASCII"},
		{"context", "c", keys.WrapDirect, []keys.Entry{with(w, func(e *keys.Entry) { e.Context = map[string]string{"kms-plugin-cluster": "x"} })}, `key "w": encryption context name "kms-plugin-cluster" is reserved`},
	} {
		r, err := keys.NewRing(c.cluster, c.wrapping, c.entries...)
		if err == nil || r != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: NewRing = %v, %v; want %q", c.name, r, err, c.want)
		}
	}
}

func TestNewRingAccepts(t *testing.T) {
	same := &kek{identity: "fake:same"}
	r, err := keys.NewRing(strings.Repeat("c", 63), keys.WrapLocalKEK,
		entry("write-1", keys.RoleWrite, time.Time{}), entry("write-2", keys.RoleWrite, noon),
		entry("read", keys.RoleRead, noon), entry("retired", keys.RoleRetired, noon), // a tie of other roles is none
		keys.Entry{Name: strings.Repeat("a", 63), Role: keys.RoleRead, Generation: 1 << 63, KEK: same},
		keys.Entry{Name: "0.-z", Role: keys.RoleRead, Generation: 1, KEK: same, Context: map[string]string{"team": "a"}})
	if err != nil {
		t.Fatal(err)
	}
	if r.ClusterID() != strings.Repeat("c", 63) || r.Wrapping() != keys.WrapLocalKEK {
		t.Errorf("ring of %q with %q", r.ClusterID(), r.Wrapping())
	}
	var names []string
	for _, e := range r.Entries() {
		names = append(names, e.Name)
		if r.ByName(e.Name) != e {
			t.Errorf("ByName(%q) finds %v", e.Name, r.ByName(e.Name))
		}
		if got, err := r.Lookup(e.KEK.Identity(), e.ContextDigest()); err != nil || got != e {
			t.Errorf("Lookup of %q = %v, %v", e.Name, got, err)
		}
	}
	if want := "write-1 write-2 read retired " + strings.Repeat("a", 63) + " 0.-z"; strings.Join(names, " ") != want {
		t.Errorf("entries %q, want %q", names, want)
	}
	if r.ByName("") != nil || r.ByName("other") != nil {
		t.Error("ByName finds what is not there")
	}
}

func TestWriteKey(t *testing.T) {
	hour := time.Hour
	r, err := keys.NewRing("c", keys.WrapDirect,
		entry("later", keys.RoleWrite, noon.Add(hour)), entry("first", keys.RoleWrite, noon.Add(-hour)), entry("at-noon", keys.RoleWrite, noon),
		entry("reader", keys.RoleRead, noon.Add(hour/2)), entry("gone", keys.RoleRetired, noon.Add(hour/2)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		now  time.Time
		want string
	}{
		{time.Time{}, "none"},
		{noon.Add(-hour - 1), "none"},
		{noon.Add(-hour), "first"}, // activated at the instant itself
		{noon.Add(-1), "first"},
		{noon, "at-noon"},
		{noon.In(time.FixedZone("x", -7200)), "at-noon"},
		{noon.Add(hour - 1), "at-noon"}, // a read or retired key never takes over
		{noon.Add(hour), "later"},
		{noon.AddDate(100, 0, 0), "later"},
	} {
		got := "none"
		if e := r.WriteKey(c.now); e != nil {
			got = e.Name
		}
		if got != c.want {
			t.Errorf("WriteKey(%s) = %s, want %s", c.now, got, c.want)
		}
	}
	always, err := keys.NewRing("c", keys.WrapDirect, entry("a", keys.RoleWrite, time.Time{}))
	if err != nil || always.WriteKey(time.Time{}) == nil || always.WriteKey(noon) == nil {
		t.Errorf("a key without activateAt does not write always: %v", err)
	}
}

func TestLookupUnknown(t *testing.T) {
	r, err := keys.NewRing("c", keys.WrapDirect, with(entry("a", keys.RoleWrite, noon), func(e *keys.Entry) { e.Context = map[string]string{"team": "a"} }))
	if err != nil {
		t.Fatal(err)
	}
	right := keys.Context{"team": "a"}.Digest()
	for _, c := range []struct {
		name, identity string
		context        [16]byte
		want           string
	}{
		{"other context", "fake:a", keys.Context(nil).Digest(), `key "a" is this KEK, but with another encryptionContext`},
		{"other KEK", "fake:b", right, `"fake:b"`},
		{"prefix of a KEK", "fake:", right, `"fake:"`},
		{"hostile", "x\n\x1b[31m", right, `"x\n\x1b[31m"`}, // quoted
	} {
		e, err := r.Lookup(c.identity, c.context)
		if e != nil || !errors.Is(err, keys.ErrUnknownKey) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Lookup = %v, %v; want ErrUnknownKey and %q", c.name, e, err, c.want)
		}
	}
}

// A slice the caller still has does not reach into the ring.
func TestRingKeepsItsOwnEntries(t *testing.T) {
	given := []keys.Entry{entry("a", keys.RoleWrite, noon)}
	r, err := keys.NewRing("c", keys.WrapDirect, given...)
	if err != nil {
		t.Fatal(err)
	}
	given[0].Name, given[0].Role = "changed", keys.RoleRetired
	if e := r.Entries()[0]; e.Name != "a" || e.Role != keys.RoleWrite {
		t.Errorf("the ring changed with its argument: %+v", e)
	}
}

func TestValidateContext(t *testing.T) {
	many := map[string]string{}
	for i := range 8 {
		many[fmt.Sprint("k", i)] = "v"
	}
	long := strings.Repeat("x", 128)
	for _, good := range []map[string]string{nil, {}, {long: long}, {" ": "~"}, many} {
		if err := keys.ValidateContext(good); err != nil {
			t.Errorf("ValidateContext(%v) = %v", good, err)
		}
	}
	nine := map[string]string{"k9": "v"}
	for k := range many {
		nine[k] = "v"
	}
	for want, bad := range map[string]map[string]string{
		"has 9 pairs, at most 8":                             nine,
		`"kms-plugin-" is reserved`:                          {"kms-plugin-": "v"},
		`"kms-plugin-type" is reserved`:                      {"kms-plugin-type": "v"},
		"encryption context name has 0 bytes":                {"": "v"},
		"encryption context name has 129 bytes":              {long + "x": "v"},
		"encryption context name holds a byte":               {"é": "v"},
		"encryption context value of k has 0 bytes":          {"k": ""},
		"encryption context value of k has 129 bytes":        {"k": long + "x"},
		"encryption context value of k holds a byte that is": {"k": "a\x7f"},
	} {
		if err := keys.ValidateContext(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ValidateContext = %v, want %q", err, want)
		}
	}
}

// Our own pairs win, the argument stays, and no two contexts share an encoding.
func TestContext(t *testing.T) {
	given := map[string]string{"team": "a", keys.ContextCluster: "forged", keys.ContextType: "forged"}
	c := keys.NewContext("prod", keys.BlobSeed, given)
	if c[keys.ContextCluster] != "prod" || c[keys.ContextType] != "seed" || c["team"] != "a" || len(c) != 3 || given[keys.ContextCluster] != "forged" {
		t.Errorf("NewContext = %v from %v", c, given)
	}
	if got := string(keys.Context{"b": "2", "a": "11"}.Canonical()); got != "\x00\x01a\x00\x0211\x00\x01b\x00\x012" {
		t.Errorf("Canonical = %q", got)
	}
	seen := map[[16]byte]int{}
	for i, c := range []keys.Context{nil, {"": ""}, {"a": ""}, {"": "a"}, {"a": "b"}, {"ab": ""}, {"a": "b", "c": "d"}, {"a": "bc", "d": ""}} {
		if o, ok := seen[c.Digest()]; ok {
			t.Errorf("contexts %d and %d have one digest", o, i)
		}
		seen[c.Digest()] = i
	}
	for b, want := range map[keys.BlobType]string{keys.BlobLocalKEK: "local-kek", keys.BlobSeed: "seed", keys.BlobProbe: "probe", 0: "blob(0)", 4: "blob(4)"} {
		if b.String() != want {
			t.Errorf("BlobType(%d) = %q, want %q", uint8(b), b, want)
		}
	}
	if keys.BlobLocalKEK != 1 || keys.BlobSeed != 2 || keys.BlobProbe != 3 {
		t.Error("the numbers of the blob types are stored and never change")
	}
}
