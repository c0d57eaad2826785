package coverage

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"kms-plugin.io/pkg/keys"
)

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
