package rotation

import (
	"context"
	"strings"
	"testing"

	"kms-plugin.io/internal/preflight"
)

// A problem holds the other steps up, a warning is shown, and a look that found
// nothing adds no step.
func TestPrecede(t *testing.T) {
	steps := func() *Plan {
		p := &Plan{Facts: &Facts{}, Steps: []Step{{Name: "a"}, {Name: "b", Missing: []string{"x"}}}}
		order(p.Steps)
		return p
	}
	report := func(r preflight.Result) *preflight.Report {
		return preflight.Run(t.Context(), []preflight.Check{{Name: "kms-timeout", Run: func(context.Context) preflight.Result { return r }}}, preflight.Options{})
	}
	for _, c := range []struct {
		name   string
		result preflight.Result
		states string
		shown  string
	}{
		{"well", preflight.Pass("well"), "done next", ""},
		{"note", preflight.Tell("so it is"), "done next", ""},
		{"warning", preflight.Warn("write 3s", "it is short"), "done done next", "warning: kms-timeout: it is short"},
		{"problem", preflight.Fail("write 3s", "it is zero"), "next done later", "do:    write 3s"},
	} {
		p := steps()
		p.Precede(report(c.result))
		var states []string
		for i, s := range p.Steps {
			states = append(states, s.State)
			if s.Number != i+1 {
				t.Errorf("%s: step %d has number %d", c.name, i, s.Number)
			}
		}
		var b strings.Builder
		if err := p.Print(&b); err != nil || strings.Join(states, " ") != c.states || !strings.Contains(b.String(), c.shown) {
			t.Errorf("%s: %v, %v, want %s with %q:\n%s", c.name, err, states, c.states, c.shown, b.String())
		}
	}
}
