// Package envelope is the wire format of what kube-apiserver stores for us
// beside every object: the header in the annotation and the framing of the
// ciphertext. It is syntax only: no I/O, no key, no cryptography but SHA-256,
// and it must not know who reads or writes it.
//
// # Header
//
// One annotation, AnnotationKey, holds the header in clear. All integers are
// big-endian; str8 is a length byte and that many bytes.
//
//	 1  format      1
//	 1  suite       0 none (wrapping: direct), 1 XAES-256-GCM, 2 AES-256-GCM under a
//	                key derived for each seal (package localkek)
//	 1  blob type   1 sealed under a local KEK, 2 seed wrapped by the KEK itself
//	 .  identity    str8, 1..200 printable ASCII: KEK, without region if multi-Region
//	 .  material    1 byte encoding: 0 text, then str8 of 0..128 printable ASCII;
//	                1 hex, then the 32 bytes that 64 lower-case hex digits stand for
//	 8  generation  1..2^63-1
//	 8  cluster     first 64 bits of SHA-256("kms-plugin.io/cluster/v1" ‖ cluster id): tells a
//	                stranger's data apart early; the binding itself is the encryption context
//	16  context     digest of the configured encryption context
//	                --- blob type 1 only:
//	32  local KEK   its id, a commitment to its bytes
//	 .  wrapped     uint16 length 1..768 and the local KEK wrapped by the KEK
//	 1  recipients  0..4 further KEKs, each: str8 identity, 16 bytes context
//	                digest, uint16 length and the same local KEK wrapped by it
//
// A header has one encoding: a text material that could be written as hex, a
// recipient that repeats a KEK, and trailing bytes are refused. Marshal and
// Parse are each other's inverse. The seal under the local KEK has
// Header.Digest as its associated data, so no byte of it can change.
//
// # Ciphertext
//
//	1  format      1
//	1  blob type   as in the header
//	.  blob type 1: suite 1: 24 bytes nonce ‖ ciphertext ‖ tag of the seed
//	                suite 2: 16 bytes salt ‖ 12 bytes nonce ‖ ciphertext ‖ tag
//	   blob type 2: the blob that the KEK made of the seed
//
// # Wrapped plaintext
//
// What a KEK wraps is never bare: see Plain.
//
// Formats are only ever added. A new format is shipped readable one release
// before it is written.
package envelope

import (
	"crypto/sha256"
	"fmt"

	"kms-plugin.io/pkg/keys"
)

// AnnotationKey is the one annotation we write. kube-apiserver demands a fully
// qualified domain name (k8s.io/apiserver envelope/kmsv2.validateAnnotations).
const AnnotationKey = "envelope.kms-plugin.io"

// Sizes and numbers of the format.
const (
	Format        = 1
	MaxHeader     = 8 << 10 // bytes; a header of one AWS KEK has about 380
	MaxRecipients = keys.MaxRecipients
	LocalKEKID    = 32
)

// Suite names the local cryptography.
type Suite uint8

// The suites.
const (
	SuiteNone Suite = 0
	SuiteXAES Suite = 1
	SuiteAES  Suite = 2
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", keys.ErrMalformed, fmt.Sprintf(format, args...))
}

// Recipient is a further KEK that can open the local KEK.
type Recipient struct {
	Identity string
	Context  [16]byte
	Wrapped  []byte
}

// Header is the decoded header. Byte slices of a parsed header alias its input.
type Header struct {
	Suite      Suite
	Type       keys.BlobType
	Identity   string
	Material   string
	Generation uint64
	Cluster    [8]byte
	Context    [16]byte
	LocalKEK   [LocalKEKID]byte
	Wrapped    []byte
	Recipients []Recipient
}

// ClusterDigest is the header's name for a cluster id.
func ClusterDigest(clusterID string) [8]byte {
	h := sha256.Sum256([]byte("kms-plugin.io/cluster/v1" + clusterID))
	return [8]byte(h[:8])
}

// Digest names a marshalled header: it is the associated data of the seal and
// the key of every cache.
func Digest(header []byte) [32]byte {
	const domain = "kms-plugin.io/header/v1"
	var b [1024]byte
	return sha256.Sum256(append(append(b[:0], domain...), header...))
}

// Wrapping tells how the seed below this header is wrapped.
func (h *Header) Wrapping() keys.Wrapping {
	if h.Type == keys.BlobSeed {
		return keys.WrapDirect
	}
	return keys.WrapLocalKEK
}

// Facts are what the header claims; with a material that the cloud confirmed
// they give the key_id.
func (h *Header) Facts(clusterID string) keys.Facts {
	f := keys.Facts{
		ClusterID: clusterID, Identity: h.Identity, Material: h.Material,
		Generation: h.Generation, Wrapping: h.Wrapping(), ContextDigest: h.Context,
	}
	for _, r := range h.Recipients {
		f.Recipients = append(f.Recipients, r.Identity)
	}
	return f
}
