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
	"clean": clean,
	"join":  func(s []string) string { return clean(strings.Join(s, ", ")) },
	"attention": func(r []Resource) []Resource {
		return slices.DeleteFunc(slices.Clone(r), func(x Resource) bool { return x.Total == x.AsIs })
	},
	"rest": func(r []Resource) []Resource {
		return slices.DeleteFunc(slices.Clone(r), func(x Resource) bool { return x.Total != x.AsIs })
	},
}).Parse(page))

// bar is one part of a resource's picture.
type bar struct {
	Class, Name string
	N           int64
}

func bars(c Counts) []bar {
	all := []bar{{"current", "current", c.Current}, {"older", "older key", c.Older}, {"others", "other provider", c.Others},
		{"plain", "plain", c.Plain}, {"broken", "broken", c.Broken}, {"asis", "as is", c.AsIs}}
	return slices.DeleteFunc(all, func(b bar) bool { return b.N == 0 })
}

// WriteHTML writes one self-contained page: no script, nothing fetched.
func (r *Report) WriteHTML(w io.Writer) error { return pageTemplate.Execute(w, r) }
