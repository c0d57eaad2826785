package coverage_test

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/coverage"
)

var (
	documentedRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.*) \\|$")
	documentedAs  = regexp.MustCompile("^as `([^`]+)` of coverage")
	quotedName    = regexp.MustCompile("`([^`]+)`")
)

// The tables of the JSON forms are the fields of the structs, in their order.
func TestDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../../docs/coverage.md")
	if err != nil {
		t.Fatal(err)
	}
	inReport := documented(t, string(doc), "kmsctl coverage", nil)
	compare(t, "coverage", inReport, fields(reflect.TypeFor[coverage.Report]()))
	compare(t, "inventory", documented(t, string(doc), "kmsctl inventory", inReport), fields(reflect.TypeFor[coverage.Inventory]()))
}

func compare(t *testing.T, what string, got, want map[string][]string) {
	t.Helper()
	for path := range want {
		if !slices.Equal(got[path], want[path]) {
			t.Errorf("%s: documented of %s are\n%q, there are\n%q", what, path, got[path], want[path])
		}
	}
	for path := range got {
		if want[path] == nil {
			t.Errorf("%s: documented is %s, which is not there", what, path)
		}
	}
}

// documented are the rows of the section "JSON" of a command: of each object its fields.
func documented(t *testing.T, doc, command string, above map[string][]string) map[string][]string {
	t.Helper()
	_, rest, _ := strings.Cut(doc, "\n## "+command+"\n")
	rest, _, _ = strings.Cut(rest, "\n## ")
	_, section, ok := strings.Cut(rest, "\n### JSON\n")
	if !ok {
		t.Fatalf("%s has no section JSON", command)
	}
	section, _, _ = strings.Cut(section, "\n### ")
	out := map[string][]string{}
	for _, m := range documentedRow.FindAllStringSubmatch(section, -1) {
		cell, names := m[2], []string{}
		if as := documentedAs.FindStringSubmatch(cell); as != nil {
			names, cell = slices.Clone(above[as[1]]), cell[len(as[0]):]
		}
		for _, n := range quotedName.FindAllStringSubmatch(cell, -1) {
			names = append(names, n[1])
		}
		out[m[1]] = names
	}
	return out
}

// fields are those of a type and of all that are within it, by where they are.
func fields(of reflect.Type) map[string][]string {
	out := map[string][]string{}
	var walk func(path string, of reflect.Type)
	walk = func(path string, of reflect.Type) {
		for i := range of.NumField() {
			f := of.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous && name == "":
				walk(path, elem(f.Type))
				continue
			case !f.IsExported() || name == "-":
				continue
			}
			out[path] = append(out[path], name)
			below := strings.TrimPrefix(path+"."+name, "*.")
			if f.Type.Kind() == reflect.Slice {
				below += "[]"
			}
			if e := elem(f.Type); e.Kind() == reflect.Struct && e != reflect.TypeFor[time.Time]() {
				walk(below, e)
			}
		}
	}
	walk("*", of)
	return out
}

func elem(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Slice || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}
