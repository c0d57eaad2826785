// Package harden takes from this process what it does not need: core files,
// being read by its own user, system calls and files. Whoever takes the process
// over is left with what it holds in memory. Each measure is best effort, since
// kernels differ, and says what became of it. The package must not know what
// the process does, nor where its configuration comes from.
//
// NoDump comes first, before any secret is read. Apply comes last, when every
// listener is bound: from then on only the paths of the Policy open.
package harden

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Mode is how far a measure is taken.
type Mode string

// The modes. Log, of system calls alone, lets a call pass and has the kernel
// log it.
const (
	Enforce Mode = "enforce"
	Log     Mode = "log"
	Off     Mode = "off"
)

// State is what became of a measure.
type State string

// The states of the label "state".
const (
	Enforced    State = "enforced"
	Partial     State = "partial" // the kernel allows less
	Logged      State = "log"
	Loosened    State = "off" // by configuration
	Unsupported State = "unsupported"
	Failed      State = "failed"
)

// States are all values of State.
var States = []State{Enforced, Partial, Logged, Loosened, Unsupported, Failed}

// The measures.
const (
	MeasureDump       = "dump"
	MeasureMemory     = "memory"
	MeasurePrivileges = "privileges"
	MeasureSyscalls   = "syscalls"
	MeasureFiles      = "files"
)

// Measure is what was achieved of one.
type Measure struct {
	Name   string
	State  State
	Detail string // one line for people, "" if the state says it all
}

// Policy is what Apply leaves.
type Policy struct {
	Dump, Memory, Privileges, Syscalls, Files Mode

	Readable []string // files; a change of a file by renaming is followed where its directory is its own
	Writable []string // directories
	Removing []string // directories in which files are removed, and nothing else
}

// Result is what Apply achieved.
type Result struct {
	Measures []Measure
	confined bool
	allowed  []string // resolved paths that open, with all below
	watched  []string // files of the system that opened, and directories that were not there
}

// Apply takes the measures. It cannot be undone. It returns even if some failed:
// a cluster must not stay down for it, but the operator must see it.
func Apply(p Policy) *Result {
	r := &Result{}
	preload()
	r.add(dump(p.Dump))
	r.add(memory(p.Memory))
	r.add(privileges(p.Privileges))
	r.add(r.confine(p)) // before system calls: it needs some that are taken away
	r.add(syscalls(p.Syscalls))
	return r
}

func (r *Result) add(m Measure) { r.Measures = append(r.Measures, m) }

func failed(name string, err error) Measure { return Measure{name, Failed, err.Error()} }

// Opens tells whether a file can be opened after Apply, also one that is
// replaced by renaming later.
func (r *Result) Opens(path string) bool {
	if !r.Confined() {
		return true
	}
	for _, p := range places(path) {
		if !r.inside(p) || !r.inside(own(p)) {
			return false
		}
	}
	return true
}

// Confined says whether files are, nil and all.
func (r *Result) Confined() bool { return r != nil && r.confined }

func (r *Result) inside(path string) bool {
	for _, a := range r.allowed {
		if path == a || strings.HasPrefix(path, strings.TrimSuffix(a, "/")+"/") {
			return true
		}
	}
	return false
}

// Closed names the files of the system, such as /etc/resolv.conf, that were replaced
// since Apply, and the writable directories that were made since, if they do not open
// here.
func (r *Result) Closed() (paths []string) {
	if r == nil {
		return nil
	}
	for _, path := range r.watched {
		if _, err := os.Stat(path); err == nil && !opens(path) {
			paths = append(paths, path)
		}
	}
	return paths
}

// places are the path as named and where its symbolic links lead to.
func places(path string) []string {
	path = filepath.Clean(path)
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		dir, derr := filepath.EvalSymlinks(filepath.Dir(path))
		if derr != nil {
			return []string{path}
		}
		resolved = filepath.Join(dir, filepath.Base(path))
	}
	named := path
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		named = filepath.Join(dir, filepath.Base(path))
	}
	if named == resolved {
		return []string{named}
	}
	return []string{named, resolved}
}

// String is one line for a log.
func (m Measure) String() string {
	if m.Detail == "" {
		return string(m.State)
	}
	return fmt.Sprintf("%s: %s", m.State, m.Detail)
}
