package coverage

import (
	"slices"
	"strings"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/stored"
	"kms-plugin.io/pkg/keys"
)

// opens tells whether the key asked for can open what is under k: as its KEK or as
// one of its co-recipients.
func (q Requirement) opens(k *Key, o Options) relation {
	rel := q.main(k, o)
	if rel == same || k.tally.kind != stored.KMSv2 || q.isExact() {
		return rel
	}
	if q.isKEK() && slices.ContainsFunc(k.Recipients, func(id string) bool { return id == q.key || sameARN(q.key, id) }) {
		if k.Name != "" {
			return same
		}
		return perhaps
	}
	if isMaterial(q.key) && len(k.Recipients) > 0 {
		return perhaps // headers do not name the material of a co-recipient
	}
	if o.Names == nil {
		return rel
	}
	if k.openedBy(o.Names, func(e *config.Key) bool { return e.Name == q.key }) {
		return same
	}
	if e := o.Names.named(q.key); e != nil && slices.ContainsFunc(k.Recipients, e.maybe) {
		return perhaps
	}
	return rel
}

// needed tells that what is under k would be lost without the key asked for: it opens
// it, or may, and no other key of the configuration that stays does.
func (q Requirement) needed(k *Key, o Options) bool {
	if q.opens(k, o) == unrelated {
		return false
	}
	return !k.openedBy(o.Names, func(e *config.Key) bool { return e.Name != q.key && e.Role != keys.RoleRetired })
}

// openedBy tells whether every header under k proves an opener that f takes.
func (k *Key) openedBy(n *Names, f func(*config.Key) bool) bool {
	if n == nil || k.tally.foreign > 0 || len(k.tally.headers) == 0 {
		return false
	}
	for h := range k.tally.headers {
		if h.err != nil || !slices.ContainsFunc(n.openers(k.KeyID, h.Header), f) {
			return false
		}
	}
	return true
}

// openers are the entries that open a header, as far as it and its key_id prove
// that: identity and encryption context must be an entry's. A co-recipient in a
// local keyset is never proved, for its identity is in the keyset.
func (n *Names) openers(keyID string, h *envelope.Header) []*config.Key {
	_, digest, err := keys.SplitKeyID(keyID)
	if err != nil || h.Cluster != envelope.ClusterDigest(n.cluster) || h.Facts(n.cluster).Digest() != digest {
		return nil
	}
	var out []*config.Key
	if e := n.entry(keyID, h); e != nil {
		out = append(out, e)
	}
	for _, r := range h.Recipients {
		for i := range n.entries {
			if e := &n.entries[i]; e.AWSKMS != nil && sameARN(e.AWSKMS.KeyARN, r.Identity) && keys.Context(e.AWSKMS.EncryptionContext).Digest() == r.Context {
				out = append(out, e)
			}
		}
	}
	return out
}

// named is the entry of a name, nil if there is none.
func (n *Names) named(name string) *entryOf {
	for i := range n.entries {
		if n.entries[i].Name == name {
			return &entryOf{&n.entries[i]}
		}
	}
	return nil
}

type entryOf struct{ *config.Key }

// maybe tells whether an identity in a header can be this entry's.
func (e entryOf) maybe(identity string) bool {
	if e.AWSKMS != nil {
		return sameARN(e.AWSKMS.KeyARN, identity)
	}
	return !strings.HasPrefix(identity, "awskms:")
}
