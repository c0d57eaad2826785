package cluster_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/cluster"
	"kms-plugin.io/internal/preflight/doctor"
)

var row = regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")

// The tables are the code's lists, in its order.
func TestDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/preflight.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := strings.Split(string(doc), "\n## ")
	for title, want := range map[string][]string{"kms-plugin doctor": doctor.Names(), "kmsctl preflight": cluster.Names(), "JSON": fields(t)} {
		i := slices.IndexFunc(sections, func(s string) bool { return strings.HasPrefix(s, title+"\n") })
		if i < 0 {
			t.Errorf("there is no section %q", title)
			continue
		}
		var got []string
		for _, m := range row.FindAllStringSubmatch(sections[i], -1) {
			got = append(got, m[1])
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: documented are\n%v, there are\n%v", title, got, want)
		}
	}
}

// fields are those of the JSON form.
func fields(t *testing.T) []string {
	t.Helper()
	data, err := json.Marshal(preflight.Report{Checks: []preflight.Outcome{{Subject: "x", Result: preflight.Result{Remedy: "x"}}}})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile(`"([a-zA-Z]+)":`).FindAllStringSubmatch(string(data), -1) {
		name := m[1]
		if slices.Contains([]string{"name", "subject", "level", "message", "remedy", "seconds"}, name) {
			name = "checks[]." + name
		}
		if name != "checks" {
			out = append(out, name)
		}
	}
	return out
}
