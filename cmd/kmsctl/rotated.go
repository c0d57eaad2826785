package main

import (
	"context"
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
	sources, err := openSnapshots(ctx, f.snapshots)
	if err != nil {
		return nil, err
	}
	return coverage.Take(ctx, sources, o, kept)
}

// rotated is what a run ends with, and what the backups need.
type rotated struct {
	*rotation.Result
	Backups *coverage.Inventory `json:"backups,omitempty"`
}

// printRotated ends with what may go and when, and what must be asked before.
func printRotated(w io.Writer, r rotated, ring *config.Config) error {
	fmt.Fprintf(w, "everything is under key_id %s, at revision %d\n", r.KeyID, r.Report.Source.Revision)
	for _, k := range r.Report.Keys {
		if !k.Current {
			fmt.Fprintf(w, "still stored under another key, and not touched: %d objects under %s %q\n", k.Objects, k.Kind, k.Provider)
		}
	}
	label, _, _ := keys.SplitKeyID(r.KeyID)
	for _, k := range others(ring, label) {
		under := int64(0)
		for _, s := range r.Report.Keys {
			if of(s, k.Name) {
				under += s.Objects
			}
		}
		if under > 0 {
			fmt.Fprintf(w, "key %q: %d objects are under it; it stays\n", k.Name, under)
			continue
		}
		fmt.Fprintf(w, "key %q: no object is under it%s; %s\n", k.Name, r.neededUntil(k.Name), toRetire(k))
	}
	_, err := fmt.Fprintln(w, "before an old key goes: take a new snapshot, ask kmsctl inventory for the backups that need it, and let etcd compact")
	return err
}

// of says whether something is stored under a key of the ring.
func of(k coverage.Key, name string) bool {
	label, _, err := keys.SplitKeyID(k.KeyID)
	return err == nil && label == name || k.Name == name
}

// neededUntil is what the backups say of a key.
func (r rotated) neededUntil(name string) string {
	if r.Backups == nil {
		return ""
	}
	last := slices.IndexFunc(r.Backups.Keys, func(n coverage.Needed) bool { return of(n.Key, name) })
	if last < 0 {
		return fmt.Sprintf(", and none of %d snapshots needs it", len(r.Backups.Snapshots))
	}
	for i, n := range r.Backups.Keys {
		if of(n.Key, name) && n.LastTime.After(r.Backups.Keys[last].LastTime) {
			last = i
		}
	}
	n := r.Backups.Keys[last]
	text := fmt.Sprintf("; last needed by %s of %s", coverage.Printable(n.LastFile), n.LastTime.Format("2006-01-02"))
	if kept, err := time.ParseDuration(r.Backups.Keep); err == nil {
		text += ", so it may go on " + coverage.Expires(n.LastTime, kept).Format("2006-01-02")
	}
	return text
}

// toRetire is the next step for a key that nothing is stored under.
func toRetire(k config.Key) string {
	if k.Role == keys.RoleRetired {
		return fmt.Sprintf("it is retired; whether it may be disabled: kmsctl retire %s --snapshots DIR", k.Name)
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
