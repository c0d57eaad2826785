package coverage

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
)

const (
	cluster = "c1"
	arnA    = "arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555"
	arnB    = "arn:aws:kms:eu-west-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef"
	kekA    = "awskms:aws:eu-west-1:111122223333:11111111-2222-3333-4444-555555555555"
	kekB    = "awskms:aws::111122223333:mrk-0123456789abcdef0123456789abcdef"
)

var (
	oldA = value("ours", "a", "", headerOf(kekA, "m1", 1, 1), "s1")
	newB = value("ours", "b", "", headerOf(kekB, "m2", 1, 2), "s2")
	cbc  = "k8s:enc:aescbc:v1:key1:" + strings.Repeat("x", 32)
)

func TestCounts(t *testing.T) {
	for _, restarts := range []int{0, 2} {
		s := sample()
		s.restarts = restarts
		r := scan(t, s, Options{Encryption: encryption(secretsByOurs), Names: pluginConfig("")})
		if got, want := resource(t, r, "secrets").Counts, (Counts{Total: 15, Current: 7, Older: 5, Others: 1, Plain: 1, Broken: 1}); got != want {
			t.Errorf("secrets: %+v, want %+v", got, want)
		}
		if got, want := r.Totals, (Counts{Total: 20, Current: 8, Older: 5, Others: 1, Plain: 1, AsIs: 4, Broken: 1}); got != want {
			t.Errorf("all: %+v, want %+v", got, want)
		}
		for name, expected := range map[string]string{"secrets": "kms v2 ours", "widgets.example.com": "kms v2 ours", "configmaps": "identity",
			"masterleases": "never encrypted", "compact_rev_key": "never encrypted", "(outside /registry)": "not kube-apiserver's"} {
			if got := resource(t, r, name).Expected; got != expected {
				t.Errorf("%s is expected %q, want %q", name, got, expected)
			}
		}
		if r.Resources[0].Resource != "secrets" {
			t.Errorf("the worst first: %s", r.Resources[0].Resource)
		}
		if r.Current != (Current{keys.KeyID("b", headerOf(kekB, "m2", 1, 2).Facts(cluster)), "newest value"}) {
			t.Errorf("current %+v", r.Current)
		}
		var names []string
		for _, k := range r.Keys {
			names = append(names, fmt.Sprintf("%s:%d:%d:%d-%d", k.Name, k.Objects, k.Seeds, k.FirstRev, k.LastRev))
		}
		if want := []string{"b:8:1:9-16", "a:5:1:1-5", ":1:0:6-6"}; !slices.Equal(names, want) {
			t.Errorf("keys %q, want %q", names, want)
		}
	}
}

// Two places in etcd are one resource, and each object counts once.
func TestResourceOfSeveralPlaces(t *testing.T) {
	s := &source{}
	s.add("/registry/example.com/widgets", newB) // has no name: as broken tools leave it
	s.add("/registry/example.com/widgets/ns/w", newB)
	s.add("/x", "1")
	s.add("/y", "2")
	r := scan(t, s, Options{})
	if got := resource(t, r, "(outside /registry)").Total; got != 2 {
		t.Errorf("%d outside, want 2", got)
	}
	if r.Totals.Total != 4 {
		t.Errorf("%d in all, want 4", r.Totals.Total)
	}
}

// Where what kube-apiserver keeps beside its prefix is read before what is of others, each
// stays what it is.
func TestBesideAndOutside(t *testing.T) {
	s := &source{}
	s.add("masterleases/10.0.0.1", "1")
	s.add("others/x", "1")
	s.add("others/y", "1")
	r := scan(t, s, Options{})
	if beside, others := resource(t, r, "masterleases/10.0.0.1"), resource(t, r, "(outside /registry)"); beside.Total != 1 || others.Total != 2 || beside.Expected == others.Expected {
		t.Errorf("%d beside (%s), %d outside (%s)", beside.Total, beside.Expected, others.Total, others.Expected)
	}
}

// What is not kube-apiserver's, or all under a wrong prefix, takes no memory of its own.
func TestManyOutside(t *testing.T) {
	s := &source{}
	for i := range 50_000 {
		s.add(fmt.Sprintf("/calico/%d", i), "1")
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := scan(t, s, Options{})
	runtime.ReadMemStats(&after)
	if got := resource(t, r, "(outside /registry)").Total; got != 50_000 {
		t.Errorf("%d outside, want 50,000", got)
	}
	if b := (after.TotalAlloc - before.TotalAlloc) / 50_000; b > 100 {
		t.Errorf("%d bytes for each object", b)
	}
}

func TestWithoutKnowledge(t *testing.T) {
	r := scan(t, sample(), Options{})
	if got, want := resource(t, r, "secrets").Counts, (Counts{Total: 15, Current: 7, Older: 5, Others: 1, Plain: 1, Broken: 1}); got != want {
		t.Errorf("secrets: %+v, want %+v", got, want)
	}
	for _, k := range r.Keys {
		if k.Name != "" {
			t.Errorf("%s has the name %q, and nobody gave names", k.ID, k.Name)
		}
	}
	given := scan(t, sample(), Options{Current: keys.KeyID("a", headerOf(kekA, "m1", 1, 1).Facts(cluster))})
	if got := resource(t, given, "secrets"); got.Current != 5 || got.Older != 7 {
		t.Errorf("with a given key_id: %+v", got.Counts)
	}
}

func TestOtherPrefix(t *testing.T) {
	s := &source{}
	s.add("/k8s/secrets/ns/a", newB)
	s.add("/registry/secrets/ns/a", newB)
	r := scan(t, s, Options{Prefix: "/k8s"})
	if got := resource(t, r, "secrets").Total; got != 1 {
		t.Errorf("%d secrets below the prefix, want 1", got)
	}
}

// A label proves nothing: only facts that give the key_id do.
func TestNamesNeedProof(t *testing.T) {
	foreign := headerOf(kekB, "m2", 1, 2)
	foreign.Cluster = envelope.ClusterDigest("c2")
	context := headerOf(kekB, "m2", 1, 2)
	context.Context = keys.Context{"team": "x"}.Digest()
	for name, tt := range map[string]struct {
		value string
		want  string
	}{
		"ours":             {newB, "b"},
		"label of another": {value("ours", "a", "", headerOf(kekB, "m2", 1, 2), "s"), "b"},
		"forged key_id":    {value("ours", "", "b:00000000000000000000000000000000", headerOf(kekB, "m2", 1, 2), "s"), ""},
		"no header":        {value("ours", "", "b:00000000000000000000000000000000", nil, "s"), ""},
		"unknown KEK":      {value("ours", "b", "", headerOf("awskms:aws:eu-west-1:1:x", "m2", 1, 2), "s"), ""},
		"other cluster":    {value("ours", "", keys.KeyID("b", headerOf(kekB, "m2", 1, 2).Facts(cluster)), foreign, "s"), ""},
		"other context":    {value("ours", "b", "", context, "s"), ""},
		"another plugin":   {value("theirs", "", "projects/x/keys/y", nil, "s"), ""},
	} {
		s := &source{}
		s.add("/registry/secrets/ns/x", tt.value)
		r := scan(t, s, Options{Names: pluginConfig("")})
		if got := r.Keys[0].Name; got != tt.want {
			t.Errorf("%s: name %q, want %q", name, got, tt.want)
		}
	}
	mixed := &source{}
	id := keys.KeyID("b", headerOf(kekB, "m2", 1, 2).Facts(cluster))
	mixed.add("/registry/secrets/ns/x", newB)
	mixed.add("/registry/secrets/ns/y", value("ours", "", id, headerOf(kekA, "m2", 1, 2), "s"))
	if k := scan(t, mixed, Options{Names: pluginConfig("")}).Keys[0]; k.Name != "" || len(k.KEKs) != 2 {
		t.Errorf("headers that contradict each other: %+v", k)
	}
}

func TestScanFails(t *testing.T) {
	s := sample()
	s.err = errors.New("went away")
	if r, err := Scan(t.Context(), s, Options{}); !errors.Is(err, s.err) || r != nil {
		t.Errorf("%v, %v", r, err)
	}
}
