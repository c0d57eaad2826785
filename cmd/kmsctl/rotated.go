package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/rotation"
	"kms-plugin.io/pkg/keys"
)

// backupFlags tell a rotation of the snapshots that are kept, so that it can name the
// day on which an old key may go.
type backupFlags struct {
	snapshots []string
	keep      string
}

func (f *backupFlags) add(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.snapshots, "snapshots", nil, "snapshot files or directories, all that are kept: ends with the day on which each other key may go")
	c.Flags().StringVar(&f.keep, "keep", "", "how long snapshots are kept, such as 30d")
}

// take reads them before anything is done; nil if none were given.
func (f *backupFlags) take(ctx context.Context, o coverage.Options) (*coverage.Inventory, error) {
	kept, err := days(f.keep)
	if err != nil {
		return nil, cli.Usage(err)
	}
	if len(f.snapshots) == 0 {
		if kept > 0 {
			return nil, cli.Usage(fmt.Errorf("--keep %s needs --snapshots", f.keep))
		}
		return nil, nil
	}
	if o.Names == nil {
		return nil, cli.Usage(errors.New("--snapshots needs --plugin-config: which keys are asked for stands there"))
	}
	sources, err := openSnapshots(ctx, f.snapshots)
	if err != nil {
		return nil, err
	}
	return coverage.Take(ctx, sources, o, kept)
}

// rotated is what a run ends with: the proof, what may become of the other keys, and
// what the backups need.
type rotated struct {
	*rotation.Result
	Others  []otherKey          `json:"otherKeys,omitempty"`
	Backups *coverage.Inventory `json:"backups,omitempty"`
}

// otherKey is one that nothing is written under any more.
type otherKey struct {
	Name    string    `json:"name"`           // in the configuration; else what the inventory calls it
	Role    keys.Role `json:"role,omitempty"` // "" if it is not in the configuration
	Objects int64     `json:"objects"`        // that are under it in etcd all the same
	// LastFile is the last snapshot that needs it, "" for none.
	LastFile string     `json:"lastFile,omitempty"`
	LastTime *time.Time `json:"lastTime,omitempty"`
	// MayGo is the first day on which no kept snapshot needs it, if none from after
	// this run does. It is not told where the times of the snapshots cannot be right, or
	// one has no hash.
	MayGo *time.Time `json:"mayGo,omitempty"`
}

func newRotated(r *rotation.Result, ring *config.Config, inv *coverage.Inventory) rotated {
	out := rotated{Result: r, Backups: inv}
	label, _, _ := keys.SplitKeyID(r.KeyID)
	for _, k := range others(ring, label) {
		out.add(otherKey{Name: k.Name, Role: k.Role}, func(s coverage.Key) bool { return of(s, k.Name) })
	}
	if ring == nil || inv == nil {
		return out
	}
	for _, n := range inv.Keys { // what left the configuration, and backups still need
		if n.KeyID != r.KeyID && !slices.ContainsFunc(ring.Keys, func(k config.Key) bool { return of(n.Key, k.Name) }) {
			out.add(otherKey{Name: n.String()}, func(s coverage.Key) bool { return s.ID == n.ID })
		}
	}
	return out
}

// of says whether something is stored under a key of the ring.
func of(k coverage.Key, name string) bool {
	label, _, err := keys.SplitKeyID(k.KeyID)
	return err == nil && label == name || k.Name == name
}

func (r *rotated) add(o otherKey, is func(coverage.Key) bool) {
	for _, s := range r.Report.Keys {
		if is(s) {
			o.Objects += s.Objects
		}
	}
	if r.Backups != nil {
		for _, n := range r.Backups.Keys {
			if is(n.Key) && (o.LastTime == nil || n.LastTime.After(*o.LastTime)) {
				r.needs(&o, n)
			}
		}
	}
	r.Others = append(r.Others, o)
}

// needs: while the run went on, a snapshot like the newest may have been made.
func (r *rotated) needs(o *otherKey, n coverage.Needed) {
	o.LastFile, o.LastTime = n.LastFile, &n.LastTime
	last := n.LastTime
	if n.Newest && r.Report.ReadAt.After(last) {
		last = r.Report.ReadAt
	}
	if kept, err := time.ParseDuration(r.Backups.Keep); err == nil && len(r.odd()) == 0 {
		day := coverage.Expires(last, kept)
		o.MayGo = &day
	}
}

// print ends with what may go and when, and what must be asked before.
func (r rotated) print(w io.Writer) error {
	fmt.Fprintf(w, "everything is under key_id %s, at revision %d\n", r.KeyID, r.Report.Source.Revision)
	for _, k := range r.Report.Keys {
		if !k.Current {
			fmt.Fprintf(w, "still stored under another key, and not touched: %d objects under %s %q\n", k.Objects, k.Kind, k.Provider)
		}
	}
	for _, o := range r.Others {
		switch {
		case o.Objects > 0:
			fmt.Fprintf(w, "key %q: %d objects are under it; it stays\n", coverage.Printable(o.Name), o.Objects)
		default:
			fmt.Fprintf(w, "key %q: no object is under it%s; %s\n", coverage.Printable(o.Name), r.neededUntil(o), o.toRetire())
		}
	}
	for _, s := range r.odd() {
		fmt.Fprintf(w, "warning: %s\n", coverage.Printable(s))
	}
	_, err := fmt.Fprintln(w, "before an old key goes: take a new snapshot, ask kmsctl inventory for the backups that need it, and let etcd compact")
	return err
}

// odd is why what the backups say of a key may not be all.
func (r rotated) odd() (out []string) {
	if r.Backups == nil {
		return nil
	}
	for _, s := range r.Backups.Snapshots {
		if !s.Source.Verified {
			out = append(out, s.Source.File+" has no hash to verify: what it seems not to need, it may need")
		}
	}
	return append(out, r.Backups.Warnings...)
}

// neededUntil is what the backups say of a key.
func (r rotated) neededUntil(o otherKey) string {
	switch {
	case r.Backups == nil:
		return ""
	case o.LastTime == nil:
		return fmt.Sprintf(", and none of %d snapshots needs it", len(r.Backups.Snapshots))
	}
	text := fmt.Sprintf("; last needed by %s of %s", coverage.Printable(o.LastFile), o.LastTime.Format("2006-01-02"))
	if o.MayGo != nil {
		text += fmt.Sprintf(", so it may go on %s if no snapshot from after this run needs it", o.MayGo.Format("2006-01-02"))
	}
	return text
}

// toRetire is the next step for a key that nothing is stored under.
func (o otherKey) toRetire() string {
	switch o.Role {
	case "":
		return "the configuration does not have it: put it back with role: retired to ask kmsctl retire"
	case keys.RoleRetired:
		return fmt.Sprintf("it is retired; whether it may be disabled: kmsctl retire %s --snapshots DIR", o.Name)
	}
	return "it may be retired once it shall not write again (role: retired), and goes when the last backup that needs it has: kmsctl inventory DIR --keep 30d"
}

// others are the keys of the ring beside the one that everything is under, and its
// co-recipients.
func others(ring *config.Config, name string) (out []config.Key) {
	if ring == nil {
		return nil
	}
	stays := []string{name}
	for _, k := range ring.Keys {
		if k.Name == name {
			stays = append(stays, k.AlsoWrapWith...)
		}
	}
	for _, k := range ring.Keys {
		if !slices.Contains(stays, k.Name) {
			out = append(out, k)
		}
	}
	return out
}
