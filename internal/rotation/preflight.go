package rotation

import (
	"slices"

	"kms-plugin.io/internal/preflight"
)

// Precede puts what a look at the files found before all steps, if it found
// anything: a problem is to be put right before the rotation goes on, a warning is
// shown.
func (p *Plan) Precede(r *preflight.Report) {
	s := Step{Name: "What kmsctl preflight finds in the files is put right", Check: "kmsctl preflight on each node", Undo: "the files as they were"}
	for _, c := range r.Found() {
		text := c.Name + ": " + c.Message
		if c.Level == preflight.Problem {
			s.Missing = append(s.Missing, text)
		} else {
			s.Found = append(s.Found, "warning: "+text)
		}
		if c.Remedy != "" {
			s.Do = append(s.Do, c.Remedy)
		}
	}
	if len(s.Missing)+len(s.Found) == 0 {
		return
	}
	p.Steps = slices.Insert(p.Steps, 0, s)
	order(p.Steps)
}
