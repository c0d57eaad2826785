package envelope

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"

	"kms-plugin.io/pkg/keys"
)

// Encodings of the material.
const (
	materialText = 0
	materialHex  = 1
)

// Marshal is the one encoding of a header. The caller gives a valid header
// (the fields within the limits of package keys); anything else is an error.
func (h *Header) Marshal() ([]byte, error) {
	b := make([]byte, 0, 512)
	b = append(b, Format, byte(h.Suite), byte(h.Type))
	b = appendStr8(b, h.Identity)
	b = appendMaterial(b, h.Material)
	b = binary.BigEndian.AppendUint64(b, h.Generation)
	b = append(b, h.Cluster[:]...)
	b = append(b, h.Context[:]...)
	if h.Type == keys.BlobLocalKEK {
		b = append(b, h.LocalKEK[:]...)
		b = appendBlob(b, h.Wrapped)
		b = append(b, byte(len(h.Recipients)))
		for _, r := range h.Recipients {
			b = appendStr8(b, r.Identity)
			b = append(b, r.Context[:]...)
			b = appendBlob(b, r.Wrapped)
		}
	}
	// What Parse refuses must never be stored.
	if _, err := Parse(b); err != nil {
		return nil, err
	}
	return b, nil
}

// Parse decodes an untrusted header. Errors wrap keys.ErrMalformed.
func Parse(b []byte) (*Header, error) {
	if len(b) > MaxHeader {
		return nil, malformed("header has %d bytes, at most %d are allowed", len(b), MaxHeader)
	}
	r := reader{b: b}
	if f := r.byte(); r.err == nil && f != Format {
		return nil, malformed("header format %d is not known to this release, which reads format %d", f, Format)
	}
	h := &Header{Suite: Suite(r.byte()), Type: keys.BlobType(r.byte())}
	h.Identity = r.identity()
	h.Material = r.material()
	h.Generation = r.uint64()
	copy(h.Cluster[:], r.take(len(h.Cluster)))
	copy(h.Context[:], r.take(len(h.Context)))
	if r.err == nil {
		r.err = h.checkKind()
	}
	if r.err == nil && h.Type == keys.BlobLocalKEK {
		h.readLocal(&r)
	}
	if r.err != nil {
		return nil, r.err
	}
	if len(r.b) != 0 {
		return nil, malformed("%d bytes behind the header", len(r.b))
	}
	return h, nil
}

// checkKind holds type, suite and generation against each other.
func (h *Header) checkKind() error {
	switch {
	case h.Type == keys.BlobLocalKEK && h.Suite != SuiteXAES && h.Suite != SuiteAES:
		return malformed("suite %d is not known to this release", h.Suite)
	case h.Type == keys.BlobSeed && h.Suite != SuiteNone:
		return malformed("suite %d with a seed that the KEK wrapped itself", h.Suite)
	case h.Type != keys.BlobLocalKEK && h.Type != keys.BlobSeed:
		return malformed("a header of blob type %d holds no DEK seed", uint8(h.Type))
	case h.Generation == 0 || h.Generation > math.MaxInt64:
		return malformed("generation out of range")
	}
	return nil
}

func (h *Header) readLocal(r *reader) {
	copy(h.LocalKEK[:], r.take(LocalKEKID))
	h.Wrapped = r.blob()
	n := int(r.byte())
	if r.err == nil && n > MaxRecipients {
		r.err = malformed("%d recipients, at most %d are allowed", n, MaxRecipients)
	}
	for range n {
		if r.err != nil {
			return
		}
		var x Recipient
		x.Identity = r.identity()
		copy(x.Context[:], r.take(len(x.Context)))
		x.Wrapped = r.blob()
		if x.Identity == h.Identity || slices.ContainsFunc(h.Recipients, func(o Recipient) bool { return o.Identity == x.Identity }) {
			r.fail("recipient twice")
		}
		h.Recipients = append(h.Recipients, x)
	}
}

func appendStr8(b []byte, s string) []byte {
	return append(append(b, byte(len(s))), s...)
}

func appendBlob(b, blob []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(blob))), blob...)
}

func appendMaterial(b []byte, m string) []byte {
	if raw, ok := hexMaterial(m); ok {
		return append(append(b, materialHex), raw...)
	}
	return appendStr8(append(b, materialText), m)
}

// hexMaterial recognises the form of AWS key material ids.
func hexMaterial(m string) ([]byte, bool) {
	if len(m) != 64 {
		return nil, false
	}
	raw, err := hex.DecodeString(m)
	if err != nil || hex.EncodeToString(raw) != m {
		return nil, false
	}
	return raw, true
}

// reader takes fields off the front; after the first fault it yields zeros.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = malformed("%s", what)
	}
}

func (r *reader) take(n int) []byte {
	if r.err != nil || len(r.b) < n {
		r.fail("header is cut short")
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if v := r.take(1); v != nil {
		return v[0]
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if v := r.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

func (r *reader) identity() string {
	s := string(r.take(int(r.byte())))
	if s == "" || len(s) > keys.MaxIdentity || !printable(s) {
		r.fail("KEK identity out of range")
	}
	return s
}

func (r *reader) material() string {
	switch r.byte() {
	case materialHex:
		return hex.EncodeToString(r.take(32))
	case materialText:
		m := string(r.take(int(r.byte())))
		if _, ok := hexMaterial(m); ok || len(m) > keys.MaxMaterial || !printable(m) {
			r.fail("material out of range or not in its one encoding")
		}
		return m
	}
	r.fail("material has an unknown encoding")
	return ""
}

func (r *reader) blob() []byte {
	v := r.take(2)
	if v == nil {
		return nil
	}
	n := int(binary.BigEndian.Uint16(v))
	if n == 0 || n > keys.MaxBlob {
		r.fail("wrapped key out of range")
		return nil
	}
	return r.take(n)
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
