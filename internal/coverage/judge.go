package coverage

import (
	"slices"

	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/stored"
)

// expectation is how a resource should be stored.
type expectation struct {
	text  string
	must  bool                      // encrypted
	known bool                      // writes is known, or that it is as it should be unencrypted
	by    encryptionconfig.Provider // the provider that writes, if known and must
}

func expected(k stored.Key, o Options) expectation {
	switch {
	case k.Outside:
		return expectation{text: "not kube-apiserver's", known: true}
	case k.Exempt:
		return expectation{text: "never encrypted", known: true}
	case o.Encryption != nil && !k.Known:
		return ofUnknown(k.Resource.Resource, o.Encryption)
	case o.Encryption != nil:
		p := o.Encryption.Writes(k.Resource)
		return expectation{p.String(), p.Kind != stored.Plain, true, p}
	case slices.Contains(o.Resources, k.Resource.String()):
		return expectation{text: "encrypted", must: true}
	}
	return expectation{text: unknown}
}

// ofUnknown is about a resource whose group is not known: it is held to a rule if
// that rule has its name, or is for everything. Otherwise nobody can tell.
func ofUnknown(resource string, c *encryptionconfig.Config) expectation {
	for _, r := range c.Rules() {
		g := stored.ParseGroupResource(r.Pattern)
		if g.Resource == resource || g.Resource == "*" && g.Group == "*" {
			return expectation{r.Providers[0].String(), r.Providers[0].Kind != stored.Plain, true, r.Providers[0]}
		}
	}
	return expectation{text: unknown}
}

// judge counts what lies at one place in etcd.
func (t *tally) judge(res *Resource, rt *resourceTally, o Options, current string) {
	want := expected(rt.key, o)
	res.Expected, res.Must = want.text, res.Must || want.must
	res.groups = append(res.groups, rt.groups...)
	currentProvider := t.providerOf(current)
	for _, g := range rt.groups {
		c := Counts{Total: g.objects}
		switch {
		case g.kind == stored.Broken:
			c.Broken = g.objects
		case !g.kind.Encrypted() && want.known && !want.must:
			c.AsIs = g.objects
		case !g.kind.Encrypted():
			c.Plain = g.objects
		case want.known && !want.by.Is(g.kind, g.key.provider):
			c.Others = g.objects
		case g.kind != stored.KMSv2 && want.known:
			c.Current = g.objects // the writing key of a local provider, by its name
		case g.kind == stored.KMSv2 && g.key.keyID == current:
			c.Current = g.objects
		case g.kind == stored.KMSv2 && (want.known || g.key.provider == currentProvider):
			c.Older = g.objects
		default:
			c.Others = g.objects
		}
		g.class = c.class()
		res.add(c)
	}
}

// class names the only count that is not 0.
func (c Counts) class() string {
	if b := bars(c); len(b) > 0 {
		return b[0].Class
	}
	return ""
}

func (t *tally) providerOf(keyID string) string {
	for _, k := range t.keys {
		if k.kind == stored.KMSv2 && k.keyID == keyID {
			return k.provider
		}
	}
	return ""
}

// current is the key_id given, or that of the newest value which the provider
// and the ring entry that write now can have written.
func (t *tally) current(o Options) Current {
	if o.Current != "" {
		return Current{o.Current, "given"}
	}
	var best *keyTally
	for _, k := range t.keys {
		if k.kind != stored.KMSv2 || o.Encryption != nil && !writes(o.Encryption, k.provider) {
			continue
		}
		if o.Names != nil && o.Names.write != "" {
			if name, _ := k.name(o.Names); name != o.Names.write {
				continue
			}
		}
		if best == nil || k.newest > best.newest {
			best = k
		}
	}
	if best == nil {
		return Current{From: "none"}
	}
	return Current{best.keyID, "newest value"}
}

func writes(c *encryptionconfig.Config, provider string) bool {
	return slices.ContainsFunc(c.Rules(), func(r *encryptionconfig.Rule) bool { return r.Providers[0].Is(stored.KMSv2, provider) })
}

// name is what the configuration calls a key, if every header proves it.
func (k *keyTally) name(n *Names) (name, role string) {
	if k.foreign > 0 || len(k.headers) == 0 {
		return "", ""
	}
	for h := range k.headers {
		if h.err != nil {
			return "", ""
		}
		e := n.entry(k.keyID, h.Header)
		if e == nil || name != "" && e.Name != name {
			return "", ""
		}
		name, role = e.Name, string(e.Role)
	}
	return name, role
}
