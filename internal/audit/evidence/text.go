package evidence

import (
	"fmt"
	"io"
	"time"
)

// Print writes a report for people.
func (r *Report) Print(w io.Writer) error {
	p := &printer{w: w}
	for _, c := range r.Chains {
		p.chain(c, r.Holds)
	}
	if len(r.Chains) == 0 && r.Holds {
		p.line("no record in these files: nothing is shown")
	}
	for _, e := range r.Elsewhere {
		p.line("chain %s is in none of these files; its record %d was anchored at %s", e.Chain, e.Last, e.At.UTC().Format(time.RFC3339))
	}
	for _, f := range r.Findings {
		place := ""
		if f.File != "" {
			place = fmt.Sprintf("%s:%d: ", f.File, f.Line)
		}
		p.line("FOUND %s%s", place, f.Text)
	}
	if r.Omitted > 0 {
		p.line("and %d more", r.Omitted)
	}
	return p.err
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) chain(c Chain, holds bool) {
	p.line("chain %s: records %d to %d, %s to %s, in %d file(s)", c.ID, c.First, c.Last, c.From.UTC().Format(time.RFC3339), c.To.UTC().Format(time.RFC3339), len(c.Files))
	if c.First > 1 {
		p.line("  records before %d are in none of these files", c.First)
	}
	if c.Gaps > 0 {
		p.line("  the log itself tells of %d records that it could not write, in %d places", c.Lost, c.Gaps)
	}
	if c.Cut {
		p.line("  the last file ends within a line: a crash, or a write under way")
	}
	switch {
	case !holds:
	case c.Anchored == 0:
		p.line("  whole and in order; no anchor: who was root on the node can have written all of it")
	case c.Anchored == c.Last:
		p.line("  whole and in order, and the KMS logged the digest of the last record at %s", c.AnchoredAt.UTC().Format(time.RFC3339))
	default:
		p.line("  whole and in order; up to record %d the KMS logged its digest at %s", c.Anchored, c.AnchoredAt.UTC().Format(time.RFC3339))
		p.line("  of records %d to %d nothing is claimed: who was root on the node can have written them", c.Anchored+1, c.Last)
	}
}
