package coverage

import (
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
)

const arnC = "arn:aws:kms:us-east-1:444455556666:key/99999999-2222-3333-4444-555555555555"

const kekC = "awskms:aws:us-east-1:444455556666:99999999-2222-3333-4444-555555555555"

// ofThree has keys a, b and c with these roles, and lab in a keyset.
func ofThree(t *testing.T, roleA, roleC string) Options {
	t.Helper()
	c, problems := config.Parse([]byte(`apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: ` + cluster + `
socket: {path: /run/k.sock}
stateDir: /var/lib/k
keys:
- {name: a, role: ` + roleA + `, awskms: {keyARN: "` + arnA + `"}}
- {name: b, role: write, awskms: {keyARN: "` + arnB + `"}}
- {name: c, role: ` + roleC + `, awskms: {keyARN: "` + arnC + `", encryptionContext: {team: x}}}
- {name: lab, role: read, localfile: {path: /etc/k/lab.keyset}}
`))
	if p := problems.Fatal(); len(p) > 0 {
		t.Fatal(p)
	}
	return Options{Encryption: encryption(secretsByOurs), Names: NewNames(c, time.Now())}
}

// What the verbs mean where a local KEK has co-recipients.
func TestGatesOfRecipients(t *testing.T) {
	team := keys.Context{"team": "x"}.Digest()
	header := func(with ...envelope.Recipient) *envelope.Header {
		h := headerOf(kekA, "m1", 1, 1)
		for i := range with {
			with[i].Wrapped = []byte("also")
		}
		h.Recipients = with
		return h
	}
	c := envelope.Recipient{Identity: kekC, Context: team}
	b := envelope.Recipient{Identity: kekB, Context: keys.Context(nil).Digest()}
	lab := envelope.Recipient{Identity: "localfile:00112233445566778899aabbccddeeff", Context: keys.Context(nil).Digest()}
	other := envelope.Recipient{Identity: kekC, Context: keys.Context{"team": "y"}.Digest()}
	stranger := envelope.Recipient{Identity: "awskms:aws:eu-west-1:1:strange", Context: team}
	const material = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	forged := value("ours", "", "a:00000000000000000000000000000000", header(c), "s")
	for name, tc := range map[string]struct {
		stored       string
		roleA, roleC string
		holds, fails string
	}{
		"a with c": {value("ours", "a", "", header(c), "s"), "read", "read",
			"all-on=a all-on=" + arnA + " none-on=b none-needs=a none-needs=b none-needs=c opened-by=a opened-by=c",
			"all-on=c all-on=" + arnC + " none-on=a none-on=c none-on=" + arnC + " none-on=" + material + " opened-by=b"},
		"a alone": {value("ours", "a", "", header(), "s"), "read", "read",
			"all-on=a none-on=c none-needs=c opened-by=a", "none-on=a none-needs=a opened-by=c"},
		"a with c, a retired":                        {value("ours", "a", "", header(c), "s"), "retired", "read", "none-needs=a none-on=b", "none-on=a none-needs=c"},
		"a with c, c retired":                        {value("ours", "a", "", header(c), "s"), "read", "retired", "none-needs=c", "none-needs=a"},
		"a with c, both retired: the last one stays": {value("ours", "a", "", header(c), "s"), "retired", "retired", "none-on=b", "none-needs=a none-needs=c"},
		"a with b and c, both retired":               {value("ours", "a", "", header(b, c), "s"), "retired", "retired", "none-needs=a none-needs=c", "none-needs=b none-on=b"},
		"c in another context":                       {value("ours", "a", "", header(other), "s"), "read", "read", "all-on=a none-on=b", "none-needs=a none-on=c opened-by=c"},
		"a stranger":                                 {value("ours", "a", "", header(stranger), "s"), "read", "read", "none-on=c", "none-needs=a"},
		"a keyset, which nothing proves":             {value("ours", "a", "", header(lab), "s"), "read", "read", "all-on=a", "none-on=lab none-needs=a opened-by=lab"},
		"forged key_id":                              {forged, "read", "read", "none-on=b", "none-needs=a none-needs=c none-on=a none-on=c opened-by=c all-on=a"},
		"a recipient's own data":                     {newB, "read", "read", "all-on=b none-needs=a none-on=a", "none-needs=b opened-by=a"},
		"another plugin":                             {value("theirs", "", "projects/x", nil, "s"), "read", "read", "none-needs=a", "opened-by=a"},
		"plain text":                                 {"k8s\x00secret", "read", "read", "none-needs=a", "opened-by=a"},
		"broken":                                     {"k8s:enc:kms:v2:ours:\xff", "read", "read", "", "none-needs=a opened-by=a none-on=a"},
	} {
		s := &source{}
		s.add("/registry/secrets/ns/x", tc.stored)
		o := ofThree(t, tc.roleA, tc.roleC)
		for _, require := range strings.Fields(tc.holds) {
			if g := gate(t, s, o, require); !g.Holds {
				t.Errorf("%s: %s does not hold: %+v", name, require, g)
			}
		}
		for _, require := range strings.Fields(tc.fails) {
			if g := gate(t, s, o, require); g.Holds {
				t.Errorf("%s: %s holds", name, require)
			}
		}
	}
	s := &source{}
	s.add("/registry/secrets/ns/x", value("ours", "a", "", header(c), "s"))
	s.add("/registry/secrets/ns/y", newB)
	if g := gate(t, s, ofThree(t, "retired", "read"), "none-needs=a"); g.Spared != 1 {
		t.Errorf("%d objects are spared by their co-recipient, want 1", g.Spared)
	}
	for require, want := range map[string]string{"none-needs=a": "needs --plugin-config", "opened-by=a": "--plugin-config"} {
		q, err := ParseRequirement(require)
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Check(Options{Encryption: encryption(secretsByOurs)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s without names: Check = %v", require, err)
		}
		if err := q.Check(Options{Encryption: encryption(secretsByOurs), Names: ofThree(t, "read", "read").Names}); err != nil {
			t.Errorf("%s: Check = %v", require, err)
		}
	}
	q, _ := ParseRequirement("none-needs=z")
	if err := q.Check(ofThree(t, "read", "read")); err == nil || !strings.Contains(err.Error(), `no key "z"`) {
		t.Errorf("an unknown key: Check = %v", err)
	}
}
