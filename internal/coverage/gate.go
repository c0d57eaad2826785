package coverage

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"kms-plugin.io/internal/stored"
	"kms-plugin.io/pkg/keys"
)

// Gate is one requirement and what stands against it.
type Gate struct {
	Require   string   `json:"require"` // as it was given
	Holds     bool     `json:"holds"`
	Reason    string   `json:"reason,omitempty"`    // why it cannot hold, whatever the objects
	Offenders []Sample `json:"offenders,omitempty"` // most objects first
	// Spared objects are under the key of none-needs, and another key opens them too.
	Spared int64 `json:"spared,omitempty"`
}

// Requirement is a parsed gate.
type Requirement struct {
	text string
	verb string
	key  string
}

// The verbs.
const (
	allOn       = "all-on"
	noneOn      = "none-on"
	noneNeeds   = "none-needs"
	openedBy    = "opened-by"
	noPlaintext = "no-plaintext"
)

// ParseRequirement reads all-on=KEY, none-on=KEY, none-needs=KEY, opened-by=KEY or
// no-plaintext. They differ where a local KEK has co-recipients: all-on is about the
// KEK that key_id names, none-on and opened-by about whatever can open it, none-needs
// about what nothing else opens. KEY is a
// key_id, its sha256:… as in kube-apiserver's metrics, a name of the plugin's
// configuration, a KEK (key ARN), a key material, or a local key of another
// provider as kind:name ("aescbc:key1").
func ParseRequirement(s string) (Requirement, error) {
	verb, key, hasKey := strings.Cut(s, "=")
	switch {
	case s == noPlaintext, slices.Contains([]string{allOn, noneOn, noneNeeds, openedBy}, verb) && hasKey && key != "":
		return Requirement{s, verb, key}, nil
	}
	return Requirement{}, fmt.Errorf("requirement %q is none of all-on=KEY, none-on=KEY, none-needs=KEY, opened-by=KEY, no-plaintext", s)
}

// Check tells whether there is enough to judge by; it is asked before etcd is read.
func (q Requirement) Check(o Options) error {
	if q.mustBe() && o.Encryption == nil && len(o.Resources) == 0 {
		return fmt.Errorf("%s needs --encryption-config FILE or --resources LIST, or nobody knows what should be encrypted", q.verb)
	}
	if q.verb == noneNeeds || q.verb == openedBy {
		return q.checkName(o)
	}
	if q.verb == noPlaintext || q.isExact() {
		return nil
	}
	if o.Names == nil && q.verb == allOn {
		return fmt.Errorf("%s: %q is no key_id, so it needs --plugin-config FILE: only that proves which key_ids belong to it", q.verb, q.key)
	}
	if o.Names != nil && !slices.Contains(o.Names.Known(), q.key) && !q.isKEK() && !isMaterial(q.key) {
		return fmt.Errorf("%s: there is no key %q in the plugin's configuration, which has %s", q.verb, q.key, strings.Join(o.Names.Known(), ", "))
	}
	if o.Names == nil && !q.isKEK() && !isMaterial(q.key) {
		return fmt.Errorf("%s: the name %q needs --plugin-config FILE; or give a key_id or a key ARN", q.verb, q.key)
	}
	return nil
}

// mustBe tells the verbs that ask something of every object that should be encrypted.
func (q Requirement) mustBe() bool { return q.verb != noneOn && q.verb != noneNeeds }

// checkName: who else opens a value only the plugin's configuration tells.
func (q Requirement) checkName(o Options) error {
	if o.Names == nil {
		return fmt.Errorf("%s needs --plugin-config FILE: only that tells which keys there are to open a value", q.verb)
	}
	if !slices.Contains(o.Names.Known(), q.key) {
		return fmt.Errorf("%s: there is no key %q in the plugin's configuration, which has %s", q.verb, q.key, strings.Join(o.Names.Known(), ", "))
	}
	return nil
}

var localKinds = map[string]stored.Kind{"aescbc": stored.AESCBC, "aesgcm": stored.AESGCM, "secretbox": stored.Secretbox, "kmsv1": stored.KMSv1, "kmsv2": stored.KMSv2}

// isExact tells the selectors that name one key beyond doubt.
func (q Requirement) isExact() bool {
	if kind, name, ok := strings.Cut(q.key, ":"); ok && localKinds[kind] != 0 && name != "" {
		return true
	}
	_, _, err := keys.SplitKeyID(q.key)
	return err == nil || isHash(q.key)
}

func isHash(s string) bool {
	h, ok := strings.CutPrefix(s, "sha256:")
	return ok && isHex(h, 64)
}

func isHex(s string, n int) bool { return len(s) == n && strings.Trim(s, "0123456789abcdef") == "" }

// isMaterial tells what AWS calls a KeyMaterialId.
func isMaterial(s string) bool { return isHex(s, 64) }

func (q Requirement) isKEK() bool {
	return strings.HasPrefix(q.key, "arn:") || strings.HasPrefix(q.key, "awskms:") || strings.HasPrefix(q.key, "localfile:")
}

// relation is what is known of a key and the one asked for.
type relation int

const (
	unrelated relation = iota
	perhaps            // it claims to be, or cannot be told
	same
)

// main compares with the KEK that key_id names. Only what is exact, or proved by the
// plugin's configuration, is the same.
func (q Requirement) main(k *Key, o Options) relation {
	if kind, name, ok := strings.Cut(q.key, ":"); ok && localKinds[kind] != 0 {
		if k.tally.kind == localKinds[kind] && k.Provider == name {
			return same
		}
		return unrelated
	}
	if k.tally.kind != stored.KMSv2 {
		return unrelated
	}
	if q.isExact() {
		if k.KeyID == q.key || k.KeyIDHash == q.key {
			return same
		}
		return unrelated
	}
	named := q.kek(k) || slices.Contains(k.Materials, q.key) || k.Name == q.key
	label, _, err := keys.SplitKeyID(k.KeyID)
	switch {
	case named && k.Name != "" && len(k.KEKs) == 1 && len(k.Materials) == 1:
		return same
	case named, err == nil && label == q.key, q.claims(k, o), k.BadHeaders > 0:
		return perhaps
	case k.Foreign > 0 && (q.isKEK() || isMaterial(q.key)):
		return perhaps // another plugin may use the same key
	}
	return unrelated
}

// kek compares KEKs, without co-recipients.
func (q Requirement) kek(k *Key) bool {
	return q.isKEK() && slices.ContainsFunc(k.KEKs, func(id string) bool {
		return id == q.key || sameARN(q.key, id)
	})
}

// claims tells whether headers name the KEK of a ring entry, proved or not.
func (q Requirement) claims(k *Key, o Options) bool {
	if o.Names == nil {
		return false
	}
	for _, e := range o.Names.entries {
		if e.Name == q.key && e.AWSKMS != nil {
			return slices.ContainsFunc(k.KEKs, func(id string) bool { return sameARN(e.AWSKMS.KeyARN, id) })
		}
	}
	return false
}

var errNothing = errors.New("no key of kube-apiserver was found below the prefix: nothing is proved")

func (q Requirement) judge(r *Report, o Options) Gate {
	g := Gate{Require: q.text}
	if q.mustBe() && !slices.ContainsFunc(r.Resources, func(res Resource) bool { return !res.outside() }) {
		g.Reason = errNothing.Error()
	}
	for i := range r.Resources {
		res := &r.Resources[i]
		for _, gr := range res.groups {
			if what := q.offends(r, res, gr, o); what != "" {
				g.offend(res.Resource, what, gr)
			} else if q.verb == noneNeeds && gr.kind.Encrypted() && q.opens(r.key(gr.key.id()), o) != unrelated {
				g.Spared += gr.objects
			}
		}
	}
	slices.SortStableFunc(g.Offenders, func(a, b Sample) int {
		return cmp.Or(cmp.Compare(b.Objects, a.Objects), cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.What, b.What))
	})
	g.Holds = g.Reason == "" && len(g.Offenders) == 0
	return g
}

func (g *Gate) offend(resource, what string, gr *group) {
	for i := range g.Offenders {
		if s := &g.Offenders[i]; s.Resource == resource && s.What == what {
			s.Objects += gr.objects
			s.Keys = append(s.Keys, gr.samples...)[:min(len(s.Keys)+len(gr.samples), maxSamples)]
			return
		}
	}
	g.Offenders = append(g.Offenders, Sample{resource, what, gr.objects, slices.Clone(gr.samples)})
}

// offends says what is wrong with a group of values, or nothing.
func (q Requirement) offends(r *Report, res *Resource, gr *group, o Options) string {
	encrypted := gr.kind.Encrypted()
	switch {
	case gr.kind == stored.Broken:
		return "broken"
	case q.verb == noPlaintext:
		if encrypted {
			return ""
		}
		return plainText(res, o)
	case q.verb == noneOn:
		if encrypted {
			switch k := r.key(gr.key.id()); q.opens(k, o) {
			case same:
				return "under " + k.String()
			case perhaps:
				return "perhaps under it: " + k.String()
			}
		}
		return ""
	case q.verb == noneNeeds:
		if encrypted {
			switch k := r.key(gr.key.id()); {
			case q.needed(k, o) && q.opens(k, o) == same:
				return "under it, and nothing else that stays opens it: " + k.String()
			case q.needed(k, o):
				return "perhaps under it: " + k.String()
			}
		}
		return ""
	case q.verb == openedBy && encrypted:
		if k := r.key(gr.key.id()); q.opens(k, o) != same {
			return "not opened by it: " + k.String()
		}
	case encrypted:
		if k := r.key(gr.key.id()); q.main(k, o) != same {
			return "under " + k.String()
		}
	default:
		return plainText(res, o)
	}
	return ""
}

const unknown = "unknown"

func plainText(res *Resource, o Options) string {
	switch {
	case res.Must:
		return "plain"
	case res.Expected == unknown && o.Encryption != nil:
		return "plain, and its group is not known"
	}
	return ""
}

func (r *Resource) outside() bool {
	return len(r.groups) > 0 && r.groups[0].resource.key.Outside
}

// String names a key for people.
func (k *Key) String() string {
	switch {
	case k.Name != "":
		return k.Name + " (" + k.KeyID + ")"
	case k.KeyID != "":
		return "key_id " + k.KeyID
	}
	return k.Kind + " " + k.Provider
}
