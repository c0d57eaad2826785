package keys

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// BlobType says what a wrapped plaintext is. It is bound into every remote call
// and into the plaintext, so that one type can never be taken for another.
type BlobType uint8

// The blob types. The numbers are stored; they are never re-used.
const (
	BlobLocalKEK BlobType = 1 // a local KEK
	BlobSeed     BlobType = 2 // a DEK seed, wrapping: direct
	BlobProbe    BlobType = 3 // a canary of the prober
)

// String is the type as the encryption context and the cloud's audit log show it.
func (t BlobType) String() string {
	switch t {
	case BlobLocalKEK:
		return "local-kek"
	case BlobSeed:
		return "seed"
	case BlobProbe:
		return "probe"
	}
	return fmt.Sprintf("blob(%d)", uint8(t))
}

// Names that the encryption context of every remote call holds. IAM and key
// policies refer to them (kms:EncryptionContext:kms-plugin-cluster).
const (
	ContextCluster = "kms-plugin-cluster"
	ContextType    = "kms-plugin-type"
	// ContextAudit is in the calls of a probe alone: the end of the audit log, so
	// that the KMS' own log holds it fast (package audit).
	ContextAudit = "kms-plugin-audit"

	contextPrefix = "kms-plugin-"
)

// Context is the encryption context of a remote call: pairs that are
// authenticated and logged by the KMS, not secret. AWS calls it
// EncryptionContext; a provider without one uses Canonical as associated data.
type Context map[string]string

// NewContext joins the pairs every call holds with those of the configuration.
func NewContext(clusterID string, t BlobType, configured map[string]string) Context {
	c := make(Context, len(configured)+2)
	maps.Copy(c, configured)
	c[ContextCluster] = clusterID
	c[ContextType] = t.String()
	return c
}

// WithAudit adds the end of the audit log, "" for none. Who unwraps must know it.
func (c Context) WithAudit(anchor string) Context {
	if anchor != "" {
		c[ContextAudit] = anchor
	}
	return c
}

// ValidateContext checks configured pairs: at most 8, names and values of 1 to
// 128 printable ASCII characters, and no name of ours.
func ValidateContext(configured map[string]string) error {
	if len(configured) > 8 {
		return fmt.Errorf("encryption context has %d pairs, at most 8 are allowed", len(configured))
	}
	for _, k := range slices.Sorted(maps.Keys(configured)) {
		if strings.HasPrefix(k, contextPrefix) {
			return fmt.Errorf("encryption context name %q is reserved: names with %q are set by the plugin itself", k, contextPrefix)
		}
		if err := printable("encryption context name", k, 128); err != nil {
			return err
		}
		if err := printable("encryption context value of "+k, configured[k], 128); err != nil {
			return err
		}
	}
	return nil
}

// Canonical is the one encoding of the context: each name and value in the
// order of the names, each behind its length as a big-endian uint16.
func (c Context) Canonical() []byte {
	var b []byte
	for _, k := range slices.Sorted(maps.Keys(c)) {
		b = appendString(appendString(b, k), c[k])
	}
	return b
}

// Digest is the first 128 bits of SHA-256 over a domain tag and Canonical.
func (c Context) Digest() [16]byte {
	h := sha256.Sum256(append(appendString(nil, "kms-plugin.io/context/v1"), c.Canonical()...))
	return [16]byte(h[:16])
}

func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// printable refuses what must not be in a stored or logged name.
func printable(what, s string, limit int) error {
	if s == "" || len(s) > limit {
		return fmt.Errorf("%s has %d bytes, 1 to %d are allowed", what, len(s), limit)
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return fmt.Errorf("%s holds a byte that is not printable ASCII", what)
		}
	}
	return nil
}
