package rotation

import (
	"fmt"
	"io"
	"strings"

	"kms-plugin.io/internal/coverage"
)

// PlanVersion of the JSON form. Fields are only ever added.
const PlanVersion = "kms-plugin.io/rotation-plan/v1"

// The states of a step.
const (
	Done   = "done"
	Next   = "next"
	Later  = "later"
	ByHand = "by hand" // nothing that can be looked at tells whether it was done
)

// Step is one step of a rotation.
type Step struct {
	Number  int      `json:"number"`
	Name    string   `json:"name"`
	State   string   `json:"state"`
	Missing []string `json:"missing,omitempty"` // what stands in the way of its being done
	Found   []string `json:"found,omitempty"`   // what shows that it is done, or what it is about
	Do      []string `json:"do,omitempty"`
	Check   string   `json:"check,omitempty"`
	Undo    string   `json:"undo,omitempty"`
	// NoReturn is the point after which something can be lost for ever.
	NoReturn bool `json:"pointOfNoReturn,omitempty"`

	byHand bool
}

// Plan is what is left of a rotation.
type Plan struct {
	APIVersion string `json:"apiVersion"`
	*Facts
	Steps    []Step `json:"steps"`
	Complete bool   `json:"complete"` // all write and everything is under the key; what follows is about old keys
}

// Flags are those of the command line that the printed commands repeat, each
// with a space before it.
type Flags struct{ Kube, Etcd, Encryption, FirstEncryption, Plugin, Plugins, To, Provider, AllowUnknown string }

func (f Flags) plan() string {
	return "kmsctl rotate plan" + f.Kube + f.Etcd + f.Encryption + f.Plugin + f.Plugins + f.To + f.Provider + f.AllowUnknown
}
func (f Flags) canary() string { return "kmsctl canary --etcd" + f.Kube + f.Etcd }
func (f Flags) run(to string) string {
	return "kmsctl rotate run --to " + to + f.Kube + f.Etcd + f.Encryption + f.Plugin + f.Plugins + f.Provider + f.AllowUnknown
}
func (f Flags) coverage(key string) string {
	return "kmsctl coverage --require all-on=" + key + f.Etcd + f.FirstEncryption + f.Plugin
}
func (f Flags) retire(key string) string {
	return "kmsctl retire " + key + " --snapshots DIR" + f.Kube + f.Etcd + f.Plugin + f.Plugins + f.AllowUnknown
}
func (f Flags) inventory() string { return "kmsctl inventory DIR --keep 30d" + f.Plugin }

// MakePlan orders the steps by the facts. It asks nobody.
func MakePlan(f *Facts, flags Flags) *Plan {
	p := &Plan{APIVersion: PlanVersion, Facts: f}
	s := steps{f, flags}
	if f.Material {
		p.Steps = []Step{s.healthy(), s.before(), s.rehearsed(), s.material(), s.converge(), s.rewrite(), s.cold(), s.after(), s.keepMaterial()}
	} else {
		p.Steps = []Step{s.healthy(), s.before(), s.rehearsed(), s.read(), s.write(), s.converge(), s.rewrite(), s.cold(), s.after()}
		p.Steps = append(p.Steps, s.ends()...)
	}
	order(p.Steps)
	p.Complete = true
	for _, st := range []Step{s.healthy(), s.write(), s.converge(), s.rewrite()} {
		p.Complete = p.Complete && len(st.Missing) == 0
	}
	return p
}

// order numbers the steps and says which is the next. One that cannot be looked at
// is never taken for done, and holds up no other.
func order(all []Step) {
	next := false
	for i := range all {
		s := &all[i]
		s.Number = i + 1
		switch {
		case !s.byHand && len(s.Missing) == 0:
			s.State = Done
		case next:
			s.State = Later
		case s.byHand:
			s.State = ByHand
		default:
			s.State, next = Next, true
		}
	}
}

// Print writes the plan for people.
func (p *Plan) Print(w io.Writer) error {
	var b strings.Builder
	what := "a new key"
	if p.Material {
		what = "new material behind the same key"
	}
	fmt.Fprintf(&b, "rotation to key %q (%s), %s, as of etcd revision %d; nothing was changed\n\n", p.Target, p.KEK, what, p.Revision)
	for _, text := range p.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", coverage.Printable(text))
	}
	for _, s := range p.Steps {
		s.print(&b)
	}
	if p.Complete {
		b.WriteString("everything is under this key: what is left concerns old keys and backups\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s *Step) print(b *strings.Builder) {
	if s.NoReturn {
		b.WriteString("---- POINT OF NO RETURN: what depends on the key after this is lost for ever ----\n")
	}
	fmt.Fprintf(b, "%2d. [%s] %s\n", s.Number, s.State, s.Name)
	for _, m := range s.Missing {
		fmt.Fprintf(b, "      - %s\n", coverage.Printable(m))
	}
	if s.State == Done {
		for _, m := range s.Found {
			fmt.Fprintf(b, "      %s\n", coverage.Printable(m))
		}
		return
	}
	for _, m := range s.Found {
		fmt.Fprintf(b, "      - %s\n", coverage.Printable(m))
	}
	for _, d := range s.Do {
		fmt.Fprintf(b, "      do:    %s\n", d)
	}
	if s.Check != "" {
		fmt.Fprintf(b, "      check: %s\n", s.Check)
	}
	if s.Undo != "" {
		fmt.Fprintf(b, "      undo:  %s\n", s.Undo)
	}
}
