package coverage

import (
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Print writes the report for people, no wider than width; 0 means that there is
// no limit. What comes from etcd is shown printable, whatever it holds.
func (r *Report) Print(w io.Writer, width int) error {
	p := &printer{w: w, width: width}
	p.source(r)
	p.resources(r)
	p.keys(r)
	p.faults(r)
	p.gates(r)
	p.line("%s", r.Verdict())
	return p.err
}

// Verdict is the report in a sentence.
func (r *Report) Verdict() string {
	t := r.Totals
	protected := t.Total - t.AsIs
	switch {
	case len(r.Gates) > 0 && r.Holds():
		return fmt.Sprintf("holds: all that is required is so, at revision %d", r.Source.Revision)
	case len(r.Gates) > 0:
		return fmt.Sprintf("DOES NOT HOLD at revision %d", r.Source.Revision)
	case protected == 0:
		return "nothing is encrypted, nor known to have to be"
	case t.Current == protected:
		return fmt.Sprintf("all %d objects that should be are on the current key", protected)
	}
	return fmt.Sprintf("%d of %d objects are on the current key; %d older, %d other providers, %d plain, %d broken",
		t.Current, protected, t.Older, t.Others, t.Plain, t.Broken)
}

type printer struct {
	w     io.Writer
	width int
	err   error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

// clean keeps what is in etcd from speaking to the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

func (p *printer) source(r *Report) {
	s := r.Source
	if s.File != "" {
		verified := "hash verified"
		if !s.Verified {
			verified = "no hash to verify: not from etcdctl snapshot save"
		}
		p.line("snapshot %s, %s, revision %d", clean(s.File), verified, s.Revision)
		p.line("sha256   %s", s.SHA256)
	} else {
		p.line("etcd %s, cluster %s, revision %d, %s", clean(strings.Join(s.Endpoints, ",")), s.ClusterID, s.Revision, r.ReadAt.Format("2006-01-02 15:04:05Z"))
	}
	if r.Current.KeyID != "" {
		p.line("current key_id (%s): %s", r.Current.From, clean(r.Current.KeyID))
	}
	p.line("")
}

func (p *printer) table(header table.Row, rows []table.Row, numbers ...int) {
	if p.err != nil || len(rows) == 0 {
		return
	}
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Options = table.OptionsNoBordersAndSeparators
	t.Style().Box.PaddingLeft, t.Style().Box.PaddingRight = "", "  "
	t.AppendHeader(header)
	t.AppendRows(rows)
	var columns []table.ColumnConfig
	for _, n := range numbers {
		columns = append(columns, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(columns)
	if p.width > 0 {
		t.Style().Size.WidthMax = p.width
	}
	var out strings.Builder
	t.SetOutputMirror(&out)
	t.Render()
	for l := range strings.Lines(out.String()) {
		p.line("%s", strings.TrimRight(l, " \n"))
	}
	p.line("")
}

// fit shortens the first column so that a row keeps within the terminal.
func (p *printer) fit(s string, others int) string {
	limit := p.width - others
	if s = clean(s); p.width <= 0 || len(s) <= limit || limit < 8 {
		return s
	}
	return text.Snip(s, limit, "…")
}

func (p *printer) resources(r *Report) {
	var rows []table.Row
	for _, x := range r.Resources {
		rows = append(rows, table.Row{p.fit(x.Resource, 62), x.Total, x.Current, x.Older, x.Others, x.Plain, x.AsIs, x.Broken})
	}
	if len(rows) > 1 {
		t := r.Totals
		rows = append(rows, table.Row{"all", t.Total, t.Current, t.Older, t.Others, t.Plain, t.AsIs, t.Broken})
	}
	p.table(table.Row{"resource", "total", "current", "older", "other", "plain", "as is", "broken"}, rows, 2, 3, 4, 5, 6, 7, 8)
}

func (p *printer) keys(r *Report) {
	for _, k := range r.Keys {
		mark := ""
		if k.Current {
			mark = ", current"
		}
		p.wrapped("    ", "%s: %s, %s, revisions %d to %d%s", k.String(), count(k.Objects, "object"), count(k.Seeds, "DEK seed"), k.FirstRev, k.LastRev, mark)
		if k.KeyID == "" {
			continue
		}
		p.wrapped("    ", "  provider %s; KEK %s; material %s; generation %d", k.Provider, list(k.KEKs), list(k.Materials), k.Generation)
		if k.Foreign+k.BadHeaders > 0 {
			p.line("  %d without a header of kms-plugin, %d with a damaged one", k.Foreign, k.BadHeaders)
		}
	}
	if len(r.Keys) > 0 {
		p.line("")
	}
}

func list(s []string) string {
	if len(s) == 0 {
		return "unknown"
	}
	return clean(strings.Join(s, ", "))
}

func (p *printer) faults(r *Report) {
	for _, x := range r.Resources {
		for _, f := range x.Faults {
			p.sample("", f)
		}
	}
}

func (p *printer) gates(r *Report) {
	for _, g := range r.Gates {
		if g.Holds {
			p.line("ok    %s", clean(g.Require))
			continue
		}
		p.line("FAIL  %s", clean(g.Require))
		if g.Reason != "" {
			p.line("      %s", g.Reason)
		}
		for _, f := range g.Offenders {
			p.sample("      ", f)
		}
	}
}

func (p *printer) sample(indent string, f Sample) {
	p.line("%s%s: %d %s, such as %s", indent, clean(f.Resource), f.Objects, clean(f.What), list(f.Keys))
}

// Printable is a text without what could speak to a terminal.
func Printable(s string) string { return clean(s) }
