package rotation

import (
	"testing"

	"kms-plugin.io/internal/preflight"
)

// Every step that is left says how to check it and how to undo it, or that there is
// nothing to undo, whichever the rotation is and however little of it was done.
func TestEveryStepHasItsCheckAndItsUndo(t *testing.T) {
	fresh := func() *Facts {
		f := settled()
		f.Left, f.Newest, f.KeyIDHash, f.Old[0].Objects, f.Broken = []string{"secrets: 3 of 9"}, nil, "", 3, 1
		for i := range f.Fleet.Plugins {
			f.Fleet.Plugins[i].Error = "refused"
		}
		return f
	}
	material, alias, local := fresh(), fresh(), fresh()
	material.Old, material.Material = nil, true
	alias.Old[0].Same = "next"
	local.Old[0].KEK = "localfile /etc/kms-plugin/keyset"
	for name, f := range map[string]*Facts{"a new key": fresh(), "all but the end": settled(), "new material": material, "one KEK, two names": alias, "a local key": local} {
		p := MakePlan(f, Flags{})
		p.Precede(&preflight.Report{Checks: []preflight.Outcome{{Name: "x", Result: preflight.Result{Level: preflight.Problem, Message: "y", Remedy: "z"}}}})
		left := 0
		for _, s := range p.Steps {
			if s.State == Done {
				continue
			}
			left++
			if s.Check == "" || s.Undo == "" {
				t.Errorf("%s: step %q has check %q and undo %q", name, s.Name, s.Check, s.Undo)
			}
		}
		if left == 0 {
			t.Errorf("%s: no step is left", name)
		}
	}
}
