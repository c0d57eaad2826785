package coverage

import (
	_ "embed"
	"html/template"
	"io"
	"slices"
	"strings"
)

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"percent": func(n, total int64) float64 {
		if total == 0 {
			return 0
		}
		return 100 * float64(n) / float64(total)
	},
	"bars":  bars,
	"parts": func(r *Report, x Resource) resourcePart { return resourcePart{x, r.parts(x)} },
	"share": (*Report).class,
	"plus":  func(a, b int) int { return a + b },
	"clean": clean,
	"join":  func(s []string) string { return clean(strings.Join(s, ", ")) },
	"attention": func(r []Resource) []Resource {
		return slices.DeleteFunc(slices.Clone(r), func(x Resource) bool { return x.Total == x.AsIs })
	},
	"rest": func(r []Resource) []Resource {
		return slices.DeleteFunc(slices.Clone(r), func(x Resource) bool { return x.Total != x.AsIs })
	},
}).Parse(page))

// bar is one part of a picture.
type bar struct {
	Class, Name string
	N           int64
	Key         int // its number on the page, from 1; 0 for none
}

// resourcePart is what the page shows of a resource.
type resourcePart struct {
	Resource
	Parts []bar
}

// class is how the objects under a key were judged: where that differs, in the resource
// that needs attention most.
func (r *Report) class(k Key) string {
	for _, x := range r.Resources {
		for _, g := range x.groups {
			if g.key != nil && g.key.id() == k.ID {
				return g.class
			}
		}
	}
	return ""
}

// parts are the shares of a resource, by how they were judged and then by key.
func (r *Report) parts(x Resource) (out []bar) {
	for _, b := range bars(x.Counts) {
		for i, k := range r.Keys {
			n := int64(0)
			for _, g := range x.groups {
				if g.class == b.Class && g.key != nil && g.key.id() == k.ID {
					n += g.objects
				}
			}
			if n > 0 {
				out = append(out, bar{b.Class, b.Name, n, i + 1})
				b.N -= n
			}
		}
		if b.N > 0 {
			out = append(out, b)
		}
	}
	return out
}

func bars(c Counts) []bar {
	all := []bar{{"current", "current", c.Current, 0}, {"older", "older key", c.Older, 0}, {"others", "other provider", c.Others, 0},
		{"plain", "plain", c.Plain, 0}, {"broken", "broken", c.Broken, 0}, {"asis", "as is", c.AsIs, 0}}
	return slices.DeleteFunc(all, func(b bar) bool { return b.N == 0 })
}

// WriteHTML writes one self-contained page: no script, nothing fetched.
func (r *Report) WriteHTML(w io.Writer) error { return pageTemplate.Execute(w, r) }
