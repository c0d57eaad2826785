package rotation

import (
	"fmt"
	"time"

	"kms-plugin.io/internal/drill"
)

// maxAge of the backup from before: what was written since is not in it.
const maxAge = 24 * time.Hour

// unfinished tells that the rotation is not over: a way back is still needed.
func (s steps) unfinished() bool { return len(s.Left) > 0 || s.KeyIDHash == "" }

func (s steps) before() Step {
	st := Step{Name: "a backup from before", Do: []string{"etcdctl snapshot save before.db"}, Check: s.flags.plan() + " --snapshots DIR", Undo: "none is needed"}
	n := s.Newest
	if n != nil {
		st.Found = []string{fmt.Sprintf("the newest is %s of %s, revision %d", n.Source.File, n.Source.FileTime.Format("2006-01-02 15:04Z"), n.Source.Revision)}
	}
	if !s.unfinished() {
		return st
	}
	if n == nil {
		st.Missing = []string{"no snapshot was given: --snapshots DIR"}
		return st
	}
	st.Missing = s.unfit()
	if age := s.Fleet.At.Sub(n.Source.FileTime); age > maxAge {
		st.Missing = append(st.Missing, fmt.Sprintf("%s is %d hours old, and etcd is at revision %d: what was written since is in no backup; take one that is less than %d hours old",
			n.Source.File, int(age.Hours()), s.Revision, int(maxAge.Hours())))
	}
	return st
}

// unfit is what makes the newest snapshot no backup of this etcd.
func (s steps) unfit() (out []string) {
	out = append(out, s.Warnings...)
	if n := s.Newest; n.Broken > 0 {
		out = append(out, fmt.Sprintf("%d values in %s cannot be read: kmsctl coverage --snapshot names them", n.Broken, n.Source.File))
	}
	if n := s.Newest; n.Source.Revision > s.Revision {
		out = append(out, fmt.Sprintf("%s is of revision %d, and etcd of %d: it is of another cluster, or etcd was restored since", n.Source.File, n.Source.Revision, s.Revision))
	}
	return out
}

// rehearsed is done by the report of a drill on the very file.
func (s steps) rehearsed() Step {
	file := "before.db"
	if s.Newest != nil {
		file = s.Newest.Source.File
	}
	st := Step{Name: "a rehearsal of its restore", Check: s.flags.plan() + " --snapshots DIR --drills drill.json", Undo: "none is needed",
		Do: []string{"kmsctl drill --snapshot " + file + " --socket /run/kms-plugin/kms.sock -o json >drill.json   # on a control-plane node"}}
	switch d := s.Drill; {
	case d != nil && !d.Passed():
		st.Missing = []string{fmt.Sprintf("in the drill on it %d of %d seeds opened, and %d values were broken", d.Opened, d.Seeds, d.Broken)}
	case d != nil:
		st.Found = []string{fmt.Sprintf("in the drill on %s all %d seeds opened, in %.1f s", d.Source.File, d.Seeds, d.Seconds)}
	case s.unfinished():
		st.Missing = []string{"no report of a drill on the newest snapshot was given: --drills FILE"}
	}
	return st
}

// drillOf is the report on the newest snapshot, nil if there is none: the file is known
// by its hash.
func (f *Facts) drillOf(all []*drill.Report) *drill.Report {
	for _, d := range all {
		if f.Newest != nil && d.Source.SHA256 != "" && d.Source.SHA256 == f.Newest.Source.SHA256 {
			return d
		}
	}
	return nil
}

func (s steps) after() Step {
	st := Step{Name: "a backup from after, that needs no old key", Do: []string{"etcdctl snapshot save after.db", s.flags.inventory()},
		Check: s.flags.plan() + " --snapshots DIR", Undo: "none is needed"}
	if s.Newest == nil {
		st.Missing = []string{"no snapshot was given: --snapshots DIR"}
		return st
	}
	st.Missing = s.unfit()
	if s.unfinished() {
		st.Missing = append(st.Missing, "not everything is under the key yet")
	}
	onTarget := int64(0)
	for _, k := range s.Newest.Keys {
		switch {
		case k.KeyIDHash == "":
			st.Found = append(st.Found, fmt.Sprintf("%s needs %s too, which this rotation is not about", s.Newest.Source.File, k.String()))
		case k.KeyIDHash != s.KeyIDHash:
			st.Missing = append(st.Missing, fmt.Sprintf("the newest, %s, needs %s", s.Newest.Source.File, k.String()))
		default:
			onTarget += k.Objects
		}
	}
	if onTarget == 0 {
		st.Missing = append(st.Missing, fmt.Sprintf("the newest, %s of revision %d, holds nothing under the key", s.Newest.Source.File, s.Newest.Source.Revision))
	}
	if len(st.Missing) == 0 {
		st.Found = append(st.Found, fmt.Sprintf("%s of revision %d holds %d objects under the key, and none under an older one", s.Newest.Source.File, s.Newest.Source.Revision, onTarget))
	}
	return st
}
