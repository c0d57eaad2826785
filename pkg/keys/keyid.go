package keys

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
)

// Facts are what a key_id stands for. Two instances with the same facts report
// the same key_id; a change of any of them changes it. It never depends on a
// host, a process, a time or a local KEK (KEP-3299, "key_id and rotation").
type Facts struct {
	ClusterID     string
	Identity      string // of the KEK
	Material      string
	Generation    uint64
	Wrapping      Wrapping
	ContextDigest [16]byte
	Recipients    []string // identities of all KEKs that can open it besides Identity
}

// KeyID is the public name of the KEK and its material as kube-apiserver stores
// and compares it: `<name>:<32 hex digits>`, at most 96 bytes. The digits are
// the first 128 bits of SHA-256 over the length-prefixed facts; the name is a
// label for people and is not part of the digest.
func KeyID(name string, f Facts) string {
	return name + ":" + f.Digest()
}

// Digest is the part of the key_id that stands for the facts: 32 hex digits.
func (f Facts) Digest() string {
	b := appendString(nil, "kms-plugin.io/key-id/v1")
	b = appendString(b, f.ClusterID)
	b = appendString(b, f.Identity)
	b = appendString(b, f.Material)
	b = binary.BigEndian.AppendUint64(b, f.Generation)
	b = appendString(b, string(f.Wrapping))
	b = append(b, f.ContextDigest[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.Recipients)))
	for _, r := range slices.Sorted(slices.Values(f.Recipients)) {
		b = appendString(b, r)
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:16])
}

// SplitKeyID parses a key_id from an untrusted source. Only the one form that
// KeyID writes is accepted; errors wrap ErrMalformed.
func SplitKeyID(s string) (name, digest string, err error) {
	i := len(s) - 33
	if i < 1 || s[i] != ':' || !validName(s[:i]) || !lowerHex(s[i+1:]) {
		return "", "", fmt.Errorf("%w: key_id is not of the form <name>:<32 hex digits>", ErrMalformed)
	}
	return s[:i], s[i+1:], nil
}

func lowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
