package audit

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Digest names a line: SHA-256 of its bytes without the newline, so that
// sha256sum finds it too. The record after it holds it in hex as "prev".
type Digest [sha256.Size]byte

// DigestOf is the digest of a line.
func DigestOf(line []byte) Digest { return sha256.Sum256(line) }

// String is the digest as records hold it.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Head is the last record of a chain. The first record of a chain has number 1
// and the zero digest before it. A chain goes on over restarts and rotated files;
// only a log that cannot be read any more makes a new one.
type Head struct {
	Chain  string // 16 hex digits, at random
	Seq    uint64
	Digest Digest
}

func newChain() Head {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails (crypto/rand)
	return Head{Chain: hex.EncodeToString(id[:])}
}

// link ends the record that starts at b[from:] with its place in the chain, and
// a newline.
func (h *Head) link(b []byte, from int) []byte {
	h.Seq++
	b = append(append(b, `,"chain":"`...), h.Chain...)
	b = strconv.AppendUint(append(b, `","seq":`...), h.Seq, 10)
	b = hex.AppendEncode(append(b, `,"prev":"`...), h.Digest[:])
	b = append(b, `"}`...)
	h.Digest = DigestOf(b[from:])
	return append(b, '\n')
}

// Follows says whether a record takes its place directly after h.
func (h Head) Follows(r *Record) bool {
	return r.Chain == h.Chain && r.Seq == h.Seq+1 && r.Prev == h.Digest.String()
}

// HeadOf is the head of a chain that ends with this record and its line.
func HeadOf(r *Record, line []byte) Head {
	return Head{Chain: r.Chain, Seq: r.Seq, Digest: DigestOf(line)}
}

var (
	chainID   = regexp.MustCompile(`^[0-9a-f]{16}$`)
	digestHex = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// maxSeq is the highest number of a record: readers of JSON that know no integers
// but float64 still tell it from its neighbours (RFC 8259, section 6). No plugin comes
// there; a line with more was not written by one, and nothing is added to it.
const maxSeq = 1 << 53

var errNoRecord = errors.New("not an audit record")

// Parse reads one line without its newline. What is not a record in full, as a
// line that a crash cut, is an error.
func Parse(line []byte) (*Record, error) {
	if len(line) > maxLine {
		return nil, fmt.Errorf("%w: it has %d bytes", errNoRecord, len(line))
	}
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoRecord, err)
	}
	if r.Seq > maxSeq {
		return nil, fmt.Errorf("%w: number %d is higher than any plugin counts", errNoRecord, r.Seq)
	}
	if !chainID.MatchString(r.Chain) || r.Seq == 0 || !digestHex.MatchString(r.Prev) {
		return nil, fmt.Errorf("%w: chain, seq or prev is missing", errNoRecord)
	}
	return &r, nil
}

// Anchor is the text that a probe carries into the KMS' own log: whoever
// rewrites the file cannot rewrite that. An empty chain is "".
func (h Head) Anchor() string {
	if h.Seq == 0 {
		return ""
	}
	return h.Chain + ":" + strconv.FormatUint(h.Seq, 10) + ":" + h.Digest.String()
}

// ParseAnchor reads what Anchor writes.
func ParseAnchor(s string) (Head, error) {
	parts := strings.Split(s, ":")
	if len(parts) == 3 && chainID.MatchString(parts[0]) && digestHex.MatchString(parts[2]) {
		seq, err := strconv.ParseUint(parts[1], 10, 64)
		h := Head{Chain: parts[0], Seq: seq}
		_, derr := hex.Decode(h.Digest[:], []byte(parts[2]))
		if err == nil && derr == nil && h.Anchor() == s {
			return h, nil
		}
	}
	return Head{}, fmt.Errorf("%q is not an anchor of an audit log", s)
}
