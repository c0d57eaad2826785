// Package evidence reads what package audit wrote and tells whether the records
// are whole, in order and unchanged, over all files of a log. It claims nothing
// that a chain cannot show: who is root on the node can write all of it anew, but
// for what an anchor in the KMS' own log holds fast. It must not know keys, and
// writes nothing.
package evidence

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"kms-plugin.io/internal/audit"
)

// maxFindings bounds how many are kept of a log that is nothing but damage.
const maxFindings = 1000

// Report is what `kmsctl audit verify -o json` prints.
type Report struct {
	Holds    bool      `json:"holds"` // nothing was found
	Chains   []Chain   `json:"chains"`
	Findings []Finding `json:"findings"`
	// Omitted counts findings beyond the first 1000.
	Omitted int `json:"omitted,omitempty"`
	// Elsewhere are chains that anchors name and no file holds.
	Elsewhere []Elsewhere `json:"elsewhere,omitempty"`
	Anchors   int         `json:"anchors"` // different ones, of all chains
}

// Chain is the log of one instance.
type Chain struct {
	ID    string    `json:"id"`
	First uint64    `json:"first"` // what came before is in none of the files
	Last  uint64    `json:"last"`
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	Files []string  `json:"files"`
	// Lost and Gaps are what the log itself says it could not write.
	Lost uint64 `json:"lost,omitempty"`
	Gaps int    `json:"gaps,omitempty"`
	// Cut: the last file ends within a line, as after a crash or in a write.
	Cut bool `json:"cut,omitempty"`
	// Anchored is the last record that an anchor confirms, 0 for none; nothing is
	// claimed of later ones.
	Anchored   uint64    `json:"anchored"`
	AnchoredAt time.Time `json:"anchoredAt,omitzero"`
}

// Elsewhere is a chain known from anchors alone.
type Elsewhere struct {
	Chain string    `json:"chain"`
	Last  uint64    `json:"last"`
	At    time.Time `json:"at"`
}

// Finding is one place where the log is not what was written.
type Finding struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	Text string `json:"text"`
}

// checker reads files one after the other and keeps spans, not records.
type checker struct {
	report  Report
	anchors Anchors
	spans   []*span
	orphans []orphan
}

// Verify reads the files of one or several logs, in any order. With partial, the
// files are not those of all instances: chains that only anchors name are no
// finding. An error is a file that cannot be read.
func Verify(files []string, anchors Anchors, partial bool) (*Report, error) {
	c := &checker{anchors: anchors, report: Report{Chains: []Chain{}, Findings: []Finding{}, Anchors: anchors.count()}}
	for _, f := range files {
		if err := c.file(f); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(c.spans, func(a, b *span) int {
		return cmp.Or(cmp.Compare(a.first.Chain, b.first.Chain), cmp.Compare(a.first.Seq, b.first.Seq))
	})
	for i, s := range c.spans {
		if i == 0 || c.spans[i-1].first.Chain != s.first.Chain {
			c.report.Chains = append(c.report.Chains, Chain{ID: s.first.Chain, First: s.first.Seq, From: s.first.Time})
			c.begins(s)
		} else {
			c.joins(c.spans[i-1], s)
		}
		c.report.Chains[len(c.report.Chains)-1].add(s)
	}
	for i := range c.report.Chains {
		c.ends(&c.report.Chains[i])
	}
	for _, o := range c.orphans {
		if !o.line {
			c.found(o.file, 1, "no line of this file is an audit record")
		}
	}
	c.elsewhere(partial)
	c.report.Holds = len(c.report.Findings) == 0
	return &c.report, nil
}

func (c *Chain) add(s *span) {
	c.Last, c.To, c.Cut = max(c.Last, s.head.Seq), s.last, s.cut
	c.Lost, c.Gaps = c.Lost+s.lost, c.Gaps+s.gaps
	if !slices.Contains(c.Files, s.file) {
		c.Files = append(c.Files, s.file)
	}
	if s.anchored.Seq > c.Anchored {
		c.Anchored, c.AnchoredAt = s.anchored.Seq, s.anchored.At
	}
}

func (c *checker) found(file string, line int, format string, args ...any) {
	if len(c.report.Findings) == maxFindings {
		c.report.Omitted++
		return
	}
	c.report.Findings = append(c.report.Findings, Finding{file, line, fmt.Sprintf(format, args...)})
}

// begins checks the first span of a chain.
func (c *checker) begins(s *span) {
	if s.first.Op != audit.OpOpen {
		c.found(s.file, s.line, "the file begins with record %d, which is not one that a file begins with: its beginning is gone", s.first.Seq)
	}
	if s.first.Seq == 1 && s.first.Prev != (audit.Digest{}).String() {
		c.found(s.file, s.line, "record 1 says that a record came before it")
	}
	c.accounts(s.first, s, "", s.first.Seq > 1)
}

// accounts checks that a record tells of all bytes before it that are no record:
// tail, at the end of the file before, those before s in its own, and files that
// hold nothing else; and of no others, unless the file they were in may be missing.
func (c *checker) accounts(r *audit.Record, s *span, tail string, missing bool) {
	told := strings.FieldsFunc(r.Torn, func(c rune) bool { return c == '+' })
	for _, junk := range []string{tail, s.junk} {
		i := slices.Index(told, junk)
		if junk != "" && i < 0 {
			c.found(s.file, s.line, "before record %d there are bytes that are no record, and it does not account for them", r.Seq)
		} else if junk != "" {
			told = slices.Delete(told, i, i+1)
		}
	}
	for _, junk := range told {
		if !c.claim(junk) && !missing {
			c.found(s.file, s.line, "record %d accounts for bytes before it that are not there", r.Seq)
		}
	}
}

// claim looks for a file that holds nothing but these bytes, which a full disk cut.
func (c *checker) claim(torn string) bool {
	i := slices.IndexFunc(c.orphans, func(o orphan) bool { return o.junk == torn })
	if i >= 0 {
		c.orphans = slices.Delete(c.orphans, i, i+1)
	}
	return i >= 0
}

// joins checks that b goes on where a ends.
func (c *checker) joins(a, b *span) {
	if a.file == b.file && a.number+1 == b.number {
		return // told where the file was read
	}
	c.follows(a.head, b.first, b.file, b.line)
	c.accounts(b.first, b, a.tail, false)
}

// follows tells why a record cannot come directly after a head of its chain.
func (c *checker) follows(h audit.Head, r *audit.Record, file string, line int) {
	switch {
	case h.Follows(r):
	case r.Seq == h.Seq+1:
		c.found(file, line, "record %d holds the digest of another record than %d: that one was changed, or this one", r.Seq, h.Seq)
	case r.Seq == h.Seq+2:
		c.found(file, line, "record %d is missing", h.Seq+1)
	case r.Seq > h.Seq:
		c.found(file, line, "records %d to %d are missing", h.Seq+1, r.Seq-1)
	case r.Seq == h.Seq:
		c.found(file, line, "record %d is there twice", r.Seq)
	default:
		c.found(file, line, "record %d comes after record %d: out of order, or there twice", r.Seq, h.Seq)
	}
}

// ends checks what follows the last record of a chain, and its last anchor.
func (c *checker) ends(chain *Chain) {
	var s *span
	for _, x := range c.spans {
		if x.first.Chain == chain.ID && (s == nil || x.head.Seq >= s.head.Seq) {
			s = x
		}
	}
	if s.tail != "" && !s.cut {
		c.found(s.file, s.end+1, "behind record %d there are bytes that are no record, and no record accounts for them", s.head.Seq)
	}
	if last, ok := c.anchors.last(chain.ID); ok && last.Seq > s.head.Seq {
		c.found(s.file, s.end, "the files end with record %d, but record %d was anchored at %s: the log was cut, or a file is not here",
			s.head.Seq, last.Seq, last.At.UTC().Format(time.RFC3339))
	}
}

// elsewhere lists the chains that only anchors know.
func (c *checker) elsewhere(partial bool) {
	for _, id := range c.anchors.chains() {
		if slices.ContainsFunc(c.report.Chains, func(x Chain) bool { return x.ID == id }) {
			continue
		}
		last, _ := c.anchors.last(id)
		c.report.Elsewhere = append(c.report.Elsewhere, Elsewhere{id, last.Seq, last.At})
		if !partial {
			c.found("", 0, "chain %s has %d records by an anchor of %s, and none of the files holds it: give the files of all instances, or --partial",
				id, last.Seq, last.At.UTC().Format(time.RFC3339))
		}
	}
}
