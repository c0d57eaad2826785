package coverage

import (
	"strings"
	"time"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
)

// Names give key_ids the names of the ring. A name counts only if the facts in
// the stored header give that very key_id for the cluster of the configuration,
// and belong to the entry: a label alone proves nothing.
type Names struct {
	cluster string
	entries []config.Key
	write   string
}

// NewNames reads the plugin's configuration; now decides which key writes.
func NewNames(c *config.Config, now time.Time) *Names {
	n := &Names{cluster: c.ClusterID, entries: c.Keys}
	var best time.Time
	for _, k := range c.Keys {
		if k.Role == keys.RoleWrite && !k.ActivateAt.After(now) && (n.write == "" || k.ActivateAt.After(best)) {
			n.write, best = k.Name, k.ActivateAt
		}
	}
	return n
}

// Known are the names there are.
func (n *Names) Known() []string {
	var out []string
	for _, k := range n.entries {
		out = append(out, k.Name)
	}
	return out
}

// entry finds the ring entry that a header and its key_id prove, nil if none.
func (n *Names) entry(keyID string, h *envelope.Header) *config.Key {
	label, digest, err := keys.SplitKeyID(keyID)
	if err != nil || h.Cluster != envelope.ClusterDigest(n.cluster) || h.Facts(n.cluster).Digest() != digest {
		return nil
	}
	for i := range n.entries {
		k := &n.entries[i]
		switch {
		case k.AWSKMS != nil && sameARN(k.AWSKMS.KeyARN, h.Identity) && keys.Context(k.AWSKMS.EncryptionContext).Digest() == h.Context:
			return k
		case k.LocalFile != nil && k.Name == label && !strings.HasPrefix(h.Identity, "awskms:"):
			// What identifies a keyset is inside it, and is not read here.
			return k
		}
	}
	return nil
}

// sameARN compares a key ARN with the identity in a header (package awskms), which
// has no region if the key is multi-Region.
func sameARN(arn, identity string) bool {
	p := strings.Split(arn, ":") // arn:aws:kms:region:account:key/id
	if len(p) != 6 {
		return false
	}
	id := strings.TrimPrefix(p[5], "key/")
	if strings.HasPrefix(id, "mrk-") {
		p[3] = ""
	}
	return identity == strings.Join([]string{"awskms", p[1], p[3], p[4], id}, ":")
}
