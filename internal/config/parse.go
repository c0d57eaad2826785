package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const maxFile = 1 << 20

// Problem is one fault of a file. A Note does not keep the file from being used.
type Problem struct {
	Line    int // 0 if it has none
	Path    string
	Message string
	Hint    string
	Note    bool
}

// Problems are all faults of a file.
type Problems []Problem

// Error is one line for each problem, and one for each hint.
func (p Problems) Error() string {
	var b strings.Builder
	for i, x := range p {
		if i > 0 {
			b.WriteByte('\n')
		}
		if x.Note {
			b.WriteString("note: ")
		}
		if x.Line > 0 {
			fmt.Fprintf(&b, "line %d: ", x.Line)
		}
		if x.Path != "" {
			fmt.Fprintf(&b, "%s: ", x.Path)
		}
		b.WriteString(x.Message)
		if x.Hint != "" {
			b.WriteString("\n  hint: " + x.Hint)
		}
	}
	return b.String()
}

// Fatal are the problems that are no notes; nil if there are none.
func (p Problems) Fatal() Problems {
	var out Problems
	for _, x := range p {
		if !x.Note {
			out = append(out, x)
		}
	}
	return out
}

// Parse decodes and validates the bytes of a file: the caller read them once and
// hashes the same bytes. On any problem that is no note the Config is nil.
func Parse(data []byte) (*Config, Problems) {
	root, problems := parseNode(data)
	if problems != nil {
		return nil, problems
	}
	c := defaults()
	c.root = root
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil {
		return nil, typeProblems(err)
	}
	for i := range c.Keys {
		if n, _ := child(sequence(root, "keys", i), "generation"); n == nil {
			c.Keys[i].Generation = 1
		}
	}
	problems = validate(c)
	if problems.Fatal() != nil {
		return nil, problems
	}
	return c, problems
}

// parseNode reads the tree that gives lines, and refuses what strict decoding
// alone would let pass.
func parseNode(data []byte) (*yaml.Node, Problems) {
	if len(data) > maxFile {
		return nil, Problems{{Message: fmt.Sprintf("the file has %d bytes, at most %d are allowed", len(data), maxFile)}}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, Problems{{Message: "the file is empty", Hint: "begin with apiVersion: " + APIVersion + " and kind: " + Kind}}
		}
		return nil, typeProblems(err)
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, Problems{{Line: more.Line, Message: "there is a second YAML document in the file", Hint: "one file holds one configuration"}}
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, Problems{{Line: doc.Line, Message: "the file is not a mapping", Hint: "begin with apiVersion: " + APIVersion}}
	}
	if n := findAlias(&doc); n != nil {
		return nil, Problems{{Line: n.Line, Message: "YAML anchors, aliases and merges are not allowed", Hint: "write the value out"}}
	}
	return doc.Content[0], nil
}

func findAlias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return n
	}
	for _, c := range n.Content {
		if x := findAlias(c); x != nil {
			return x
		}
	}
	return nil
}

var (
	lineText  = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\s*)?line ([0-9]+): (.*)$`)
	fieldText = regexp.MustCompile(`^field (\S+) not found in type \S+$`)
)

// typeProblems gives the decoder's own errors our form. Its text is the only
// place that has the line, so it is read here and nowhere else
// (go.yaml.in/yaml/v3: TypeError).
func typeProblems(err error) Problems {
	texts := []string{err.Error()}
	var te *yaml.TypeError
	if errors.As(err, &te) {
		texts = te.Errors
	}
	var out Problems
	for _, text := range texts {
		text = strings.Join(strings.Fields(text), " ") // a tag may hold line breaks
		p := Problem{Message: strings.TrimPrefix(text, "yaml: ")}
		if m := lineText.FindStringSubmatch(text); m != nil {
			p.Line, _ = strconv.Atoi(m[1]) // the pattern lets only digits pass
			p.Message = m[2]
		}
		if m := fieldText.FindStringSubmatch(p.Message); m != nil {
			p.Message = fmt.Sprintf("unknown field %q", m[1])
			p.Hint = "the fields are listed in docs/configuration.md"
			if near := nearest(m[1]); near != "" {
				p.Hint = fmt.Sprintf("is %q meant?", near)
			}
		}
		if strings.Contains(p.Message, "already defined") {
			p.Hint = "keep one of the two"
		}
		out = append(out, p)
	}
	return out
}

// Line is the line of a field such as "keys[0].role"; of the nearest parent that
// is there, if it is not.
func (c *Config) Line(path string) int {
	n, line := c.root, 0
	if n == nil {
		return 0
	}
	line = n.Line
	for _, part := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		next, at := child(n, part)
		if next == nil {
			return line
		}
		n, line = next, at
	}
	return line
}

// StateDir finds the state directory in a file that may be broken elsewhere, ""
// if it cannot be told.
func StateDir(data []byte) string {
	root, problems := parseNode(data)
	if problems != nil {
		return looseStateDir(data)
	}
	if n, _ := child(root, "stateDir"); n != nil && n.Kind == yaml.ScalarNode {
		return n.Value
	}
	return ""
}

var stateDirLine = regexp.MustCompile(`(?m)^stateDir: *["']?(/[^"'#\s]+)`)

// looseStateDir serves a file that is not even YAML.
func looseStateDir(data []byte) string {
	if m := stateDirLine.FindSubmatch(data); m != nil {
		return string(m[1])
	}
	return ""
}

// sequence is item i of the list below a name; decoding has shown it is there.
func sequence(root *yaml.Node, name string, i int) *yaml.Node {
	list, _ := child(root, name)
	item, _ := child(list, strconv.Itoa(i))
	return item
}

func child(n *yaml.Node, part string) (*yaml.Node, int) {
	if n.Kind == yaml.SequenceNode {
		i, err := strconv.Atoi(part)
		if err != nil || i < 0 || i >= len(n.Content) {
			return nil, 0
		}
		return n.Content[i], n.Content[i].Line
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == part {
			return n.Content[i+1], n.Content[i].Line
		}
	}
	return nil, 0
}

// Fields lists every field as a path, lists as "keys[]".
func Fields() []string { return fieldsOf(reflect.TypeFor[Config](), "") }

func fieldsOf(t reflect.Type, prefix string) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		tag := f.Tag.Get("yaml")
		if tag == "" {
			continue
		}
		name, ft := prefix+tag, f.Type
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		switch {
		case ft.Kind() == reflect.Slice && ft.Elem().Kind() == reflect.Struct:
			out = append(out, fieldsOf(ft.Elem(), name+"[].")...)
		case ft.Kind() == reflect.Struct && ft.PkgPath() == reflect.TypeFor[Config]().PkgPath():
			out = append(out, fieldsOf(ft, name+".")...)
		default:
			out = append(out, name)
		}
	}
	return out
}

// nearest is the known field name within two edits, if there is one.
func nearest(name string) string {
	best, at := "", 3
	for _, f := range Fields() {
		for _, part := range strings.FieldsFunc(f, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
			if d := distance(strings.ToLower(name), strings.ToLower(part)); d < at {
				best, at = part, d
			}
		}
	}
	return best
}

// distance counts single-letter edits between two words (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
