package coverage

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/pkg/keys"
)

const (
	cluster = "c1"
	arnA    = "arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555"
	arnB    = "arn:aws:kms:eu-west-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef"
	kekA    = "awskms:aws:eu-west-1:111122223333:11111111-2222-3333-4444-555555555555"
	kekB    = "awskms:aws::111122223333:mrk-0123456789abcdef0123456789abcdef"
)

func pluginConfig(extra string) *Names {
	c, problems := config.Parse([]byte(`apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: ` + cluster + `
socket: {path: /run/k.sock}
stateDir: /var/lib/k
keys:
- {name: a, role: read, awskms: {keyARN: "` + arnA + `"}}
- {name: b, role: write, awskms: {keyARN: "` + arnB + `"}}
` + extra))
	if p := problems.Fatal(); len(p) > 0 {
		panic(p)
	}
	return NewNames(c, time.Now())
}

func encryption(text string) *encryptionconfig.Config {
	c, err := encryptionconfig.Parse([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n" + text))
	if err != nil {
		panic(err)
	}
	return c
}

const secretsByOurs = `- {resources: [secrets, widgets.example.com], providers: [{kms: {apiVersion: v2, name: ours, endpoint: x}}, {aescbc: {keys: [{name: key1, secret: eA==}]}}, {identity: {}}]}
`

func headerOf(kek, material string, generation uint64, local byte) *envelope.Header {
	return &envelope.Header{Suite: envelope.SuiteXAES, Type: keys.BlobLocalKEK, Identity: kek, Material: material, Generation: generation,
		Cluster: envelope.ClusterDigest(cluster), Context: keys.Context(nil).Digest(), LocalKEK: [32]byte{local}, Wrapped: []byte("wrapped")}
}

// value is a stored object; id "" is the key_id that the header proves.
func value(provider, name, id string, h *envelope.Header, source string) string {
	if id == "" {
		id = keys.KeyID(name, h.Facts(cluster))
	}
	b := field(1, "data")
	b = append(b, field(2, id)...)
	b = append(b, field(3, source)...)
	if h != nil {
		raw, err := h.Marshal()
		if err != nil {
			panic(err)
		}
		b = append(b, field(4, string(append(field(1, envelope.AnnotationKey), field(2, string(raw))...)))...)
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, 5, protowire.VarintType), 1)
	return "k8s:enc:kms:v2:" + provider + ":" + string(b)
}

func field(num protowire.Number, v string) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte(v))
}

// source is an etcd in memory; each key has the revision of its place.
type source struct {
	kvs      [][2]string
	restarts int
	err      error
}

func (s *source) add(key, value string) { s.kvs = append(s.kvs, [2]string{key, value}) }

func (s *source) Scan(_ context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	for i := range s.restarts + 1 {
		visit, err := begin(etcdstore.Info{Kind: "live", ClusterID: "0001", Revision: int64(len(s.kvs)), Keys: int64(len(s.kvs))})
		if err != nil {
			return err
		}
		n := len(s.kvs)
		if i < s.restarts {
			n /= 2
		}
		for j, kv := range s.kvs[:n] {
			if err := visit(etcdstore.KV{Key: []byte(kv[0]), Value: []byte(kv[1]), ModRevision: int64(j + 1)}); err != nil {
				return err
			}
		}
	}
	return s.err
}

var (
	oldA = value("ours", "a", "", headerOf(kekA, "m1", 1, 1), "s1")
	newB = value("ours", "b", "", headerOf(kekB, "m2", 1, 2), "s2")
	cbc  = "k8s:enc:aescbc:v1:key1:" + strings.Repeat("x", 32)
)

func sample() *source {
	s := &source{}
	for i := range 5 {
		s.add(fmt.Sprintf("/registry/secrets/ns/a%d", i), oldA)
	}
	s.add("/registry/secrets/ns/cbc", cbc)
	s.add("/registry/secrets/ns/plain", "k8s\x00secret")
	s.add("/registry/secrets/ns/broken", "k8s:enc:kms:v2:ours:\xff")
	for i := range 7 {
		s.add(fmt.Sprintf("/registry/secrets/ns/b%d", i), newB)
	}
	s.add("/registry/example.com/widgets/ns/w", newB)
	s.add("/registry/configmaps/ns/c", "k8s\x00configmap")
	s.add("/registry/masterleases/1", "k8s\x00lease")
	s.add("/calico/x", "y")
	s.add("compact_rev_key", "12")
	return s
}

func scan(t *testing.T, s *source, o Options) *Report {
	t.Helper()
	r, err := Scan(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func resource(t *testing.T, r *Report, name string) Resource {
	t.Helper()
	for _, x := range r.Resources {
		if x.Resource == name {
			return x
		}
	}
	t.Fatalf("no resource %s in %v", name, r.Resources)
	return Resource{}
}

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

func gate(t *testing.T, s *source, o Options, require string) Gate {
	t.Helper()
	q, err := ParseRequirement(require)
	if err == nil {
		err = q.Check(o)
	}
	if err != nil {
		t.Fatalf("%s: %v", require, err)
	}
	o.Gates = []Requirement{q}
	r := scan(t, s, o)
	if r.Holds() != r.Gates[0].Holds {
		t.Error("the report and its gate differ")
	}
	return r.Gates[0]
}

func TestGates(t *testing.T) {
	idA, idB := keys.KeyID("a", headerOf(kekA, "m1", 1, 1).Facts(cluster)), keys.KeyID("b", headerOf(kekB, "m2", 1, 2).Facts(cluster))
	clean := func(more ...string) *source {
		s := &source{}
		s.add("/registry/secrets/ns/b", newB)
		s.add("/registry/configmaps/ns/c", "k8s\x00configmap")
		s.add("/calico/x", "y")
		for i, v := range more {
			s.add(fmt.Sprintf("/registry/secrets/ns/more%d", i), v)
		}
		return s
	}
	o := Options{Encryption: encryption(secretsByOurs), Names: pluginConfig("")}
	everything := Options{Encryption: encryption(strings.ReplaceAll(secretsByOurs, "secrets, widgets.example.com", `"*.*"`)), Names: pluginConfig("")}
	groups := Options{Encryption: encryption(strings.ReplaceAll(secretsByOurs, "secrets,", `secrets, "*.apps",`))}
	foreign := value("theirs", "", "projects/x", nil, "s")
	unknown := &source{}
	unknown.add("/registry/newthings/ns/x", "k8s\x00")
	outside := &source{}
	outside.add("/other/x", "y")
	tests := []struct {
		what, require string
		s             *source
		o             Options
		holds         bool
		offender      string
	}{
		{"all on b", "all-on=b", clean(), o, true, ""},
		{"by key_id", "all-on=" + idB, clean(), o, true, ""},
		{"by hash", "all-on=" + hash(idB), clean(), o, true, ""},
		{"by ARN", "all-on=" + arnB, clean(), o, true, ""},
		{"by ARN of another region", "all-on=" + strings.Replace(arnB, "eu-west-1", "us-east-1", 1), clean(), o, true, ""},
		{"one on a", "all-on=b", clean(oldA), o, false, "under a ("},
		{"one plain", "all-on=b", clean("k8s\x00x"), o, false, "plain"},
		{"one broken", "all-on=b", clean("k8s:enc:kms:v2:ours:\xff"), o, false, "broken"},
		{"one of another provider", "all-on=b", clean(cbc), o, false, "under aescbc key1"},
		{"one of another plugin", "all-on=b", clean(foreign), o, false, "projects/x"},
		{"configmaps must be too", "all-on=b", clean(), everything, false, "plain"},
		{"forged label", "all-on=b", clean(value("ours", "", "b:00000000000000000000000000000000", headerOf(kekB, "m2", 1, 2), "s")), o, false, "under key_id"},
		{"nothing there", "all-on=b", &source{}, o, false, ""},
		{"all outside", "all-on=b", outside, o, false, ""},
		{"none on a", "none-on=a", clean(), o, true, ""},
		{"none on a by ARN", "none-on=" + arnA, clean(), o, true, ""},
		{"none on a, without a config", "none-on=" + idA, clean(), Options{}, true, ""},
		{"one on a, by name", "none-on=a", clean(oldA), o, false, "under a ("},
		{"one on a, by key_id", "none-on=" + idA, clean(oldA), Options{}, false, "under key_id a:"},
		{"one on a, by hash", "none-on=" + hash(idA), clean(oldA), Options{}, false, "under key_id a:"},
		{"one on a, by ARN alone", "none-on=" + arnA, clean(oldA), Options{}, false, "perhaps"},
		{"one claims the label a", "none-on=a", clean(value("ours", "", "a:00000000000000000000000000000000", nil, "s")), o, false, "perhaps"},
		{"one claims the KEK of a", "none-on=a", clean(value("ours", "", "z:00000000000000000000000000000000", headerOf(kekA, "x", 1, 1), "s")), o, false, "perhaps"},
		{"another plugin may use the KEK", "none-on=" + arnA, clean(foreign), o, false, "perhaps"},
		{"another plugin has no name of ours", "none-on=a", clean(foreign), o, true, ""},
		{"broken may be anything", "none-on=a", clean("k8s:enc:kms:v2:ours:\xff"), o, false, "broken"},
		{"local key", "none-on=aescbc:key1", clean(cbc), Options{}, false, "under aescbc key1"},
		{"other local key", "none-on=aescbc:key2", clean(cbc), Options{}, true, ""},
		{"outside counts", "none-on=" + idB, func() *source { s := &source{}; s.add("/other/x", newB); return s }(), o, false, "under b"},
		{"no plaintext", "no-plaintext", clean(oldA, cbc), o, true, ""},
		{"plaintext", "no-plaintext", clean("k8s\x00"), o, false, "plain"},
		{"unreadable", "no-plaintext", clean("k8s:enc:x"), o, false, "broken"},
		{"unknown resource, no rule", "no-plaintext", unknown, groups, false, "group is not known"},
		{"by a list", "no-plaintext", clean("k8s\x00"), Options{Resources: []string{"secrets"}}, false, "plain"},
		{"not on the list", "no-plaintext", clean(), Options{Resources: []string{"secrets"}}, true, ""},
	}
	for _, tt := range tests {
		g := gate(t, tt.s, tt.o, tt.require)
		if g.Holds != tt.holds {
			t.Errorf("%s: holds %t, want %t: %+v", tt.what, g.Holds, tt.holds, g)
			continue
		}
		if tt.offender != "" && !slices.ContainsFunc(g.Offenders, func(s Sample) bool { return strings.Contains(s.What, tt.offender) && s.Objects > 0 && len(s.Keys) > 0 }) {
			t.Errorf("%s: offenders %+v, want one with %q", tt.what, g.Offenders, tt.offender)
		}
		if !tt.holds && len(g.Offenders) == 0 && g.Reason == "" {
			t.Errorf("%s: fails, and does not say why", tt.what)
		}
	}
}

func TestRequirementsThatCannotBeJudged(t *testing.T) {
	for _, s := range []string{"", "all-on", "all-on=", "none-on=", "no-plaintext=x", "some-on=x"} {
		if _, err := ParseRequirement(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
	names, enc := pluginConfig(""), encryption(secretsByOurs)
	for _, tt := range []struct {
		require string
		o       Options
		want    string
	}{
		{"no-plaintext", Options{}, "--encryption-config"},
		{"all-on=b", Options{Names: names}, "--encryption-config"},
		{"all-on=b", Options{Encryption: enc}, "--plugin-config"},
		{"all-on=" + arnB, Options{Encryption: enc}, "--plugin-config"},
		{"all-on=c", Options{Encryption: enc, Names: names}, `no key "c"`},
		{"none-on=c", Options{Names: names}, `no key "c"`},
		{"none-on=c", Options{}, "--plugin-config"},
	} {
		q, err := ParseRequirement(tt.require)
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Check(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.require, err, tt.want)
		}
	}
}

func TestScanFails(t *testing.T) {
	s := sample()
	s.err = errors.New("went away")
	if r, err := Scan(t.Context(), s, Options{}); !errors.Is(err, s.err) || r != nil {
		t.Errorf("%v, %v", r, err)
	}
}
