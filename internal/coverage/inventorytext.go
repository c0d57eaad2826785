package coverage

import (
	"fmt"
	"io"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
)

// Print writes the inventory for people, no wider than width; 0 means that there is no
// limit. Each snapshot comes with the keys that it needs, then each key with the last
// snapshot that needs it.
func (inv *Inventory) Print(w io.Writer, width int) error {
	p := &printer{w: w, width: width}
	for _, s := range inv.Snapshots {
		p.snapshot(s)
	}
	for _, n := range inv.Keys {
		p.needed(n)
	}
	for _, s := range inv.Warnings {
		p.wrapped("", "warning: %s", s)
	}
	return p.err
}

func (p *printer) snapshot(s Snapshot) {
	verified := "hash verified"
	if !s.Source.Verified {
		verified = "no hash to verify"
	}
	p.line("%s", clean(s.Source.File))
	p.wrapped("  ", "  %s, revision %d, %s", s.Source.FileTime.Format("2006-01-02 15:04Z"), s.Source.Revision, verified)
	p.wrapped("  ", "  %s, of them %d plain, %d broken", count(s.Objects, "object"), s.Plain, s.Broken)
	if len(s.Keys) == 0 {
		p.line("  needs no key")
	} else {
		p.wrapped("  ", "  needs %s, %s, %s:", count(len(s.Keys), "key"), count(s.Wrapped, "wrapped local KEK"), count(s.Seeds, "DEK seed"))
	}
	for _, k := range s.Keys {
		p.wrapped("      ", "    %s: %s", k.String(), count(k.Objects, "object"))
		p.materials("      ", k)
	}
	p.line("")
}

func (p *printer) needed(n Needed) {
	p.wrapped("  ", "%s", n.String())
	p.materials("  ", n.Key)
	if len(n.Recipients) > 0 {
		p.wrapped("    ", "  or, by its co-recipients, any one of %s", list(n.Recipients))
	}
	p.wrapped("    ", "  last needed by %s of %s", n.LastFile, n.LastTime.Format("2006-01-02"))
	switch {
	case n.Newest:
		p.wrapped("    ", "  the newest snapshot needs it: it may not go")
	case n.MayGo != nil:
		p.wrapped("    ", "  may go on %s, if no other backup and no cluster needs it", n.MayGo.Format("2006-01-02"))
	}
}

// materials are what a key of KMS v2 is made of; of local ones nothing is known.
func (p *printer) materials(indent string, k Key) {
	switch {
	case len(k.Materials) > 0:
		p.wrapped(indent+"  ", "%sKEK %s; material %s", indent, list(k.KEKs), list(k.Materials))
	case k.KeyID != "":
		p.wrapped(indent+"  ", "%sKEK unknown: its values have no header of kms-plugin", indent)
	}
}

func count[N int | int64](n N, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// wrapped is a line, clean, that goes on under an indent where the terminal ends, but
// never within a word: half an ARN is no ARN.
func (p *printer) wrapped(indent, format string, args ...any) {
	s := clean(fmt.Sprintf(format, args...))
	body := strings.TrimLeft(s, " ")
	line := s[:len(s)-len(body)]
	empty := true
	for word := range strings.SplitAfterSeq(body, " ") {
		if !empty && p.width > 0 && text.StringWidth(line+strings.TrimRight(word, " ")) > p.width {
			p.line("%s", strings.TrimRight(line, " "))
			line = indent
		}
		line += word
		empty = false
	}
	p.line("%s", line)
}
