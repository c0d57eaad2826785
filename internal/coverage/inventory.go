package coverage

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"kms-plugin.io/internal/etcdstore"
)

// InventoryVersion of the JSON form. Fields are only ever added.
const InventoryVersion = "kms-plugin.io/inventory/v1"

// Inventory is what a set of snapshots needs to be readable.
type Inventory struct {
	APIVersion string     `json:"apiVersion"`
	Snapshots  []Snapshot `json:"snapshots"` // oldest first
	Keys       []Needed   `json:"keys"`      // longest needed last
	Keep       string     `json:"keep,omitempty"`
	Warnings   []string   `json:"warnings,omitempty"`
}

// Snapshot is one of them. Its time is that of the file: a snapshot holds none.
type Snapshot struct {
	Source  etcdstore.Info `json:"source"`
	Objects int64          `json:"objects"`
	Plain   int64          `json:"plain"`  // not encrypted, of all resources
	Broken  int64          `json:"broken"` // say that they are encrypted, and cannot be read
	Seeds   int            `json:"seeds"`  // distinct wrapped DEK sources
	Wrapped int            `json:"localKEKs"`
	Keys    []Key          `json:"keys"`
}

// Needed is a key, and the last snapshot that needs it.
type Needed struct {
	Key
	LastFile string    `json:"lastFile"`
	LastTime time.Time `json:"lastTime"`
	// Newest tells that the newest snapshot needs it, so that it may not go at all.
	Newest bool `json:"newest"`
	// MayGo is the first day on which no kept snapshot needs it.
	MayGo *time.Time `json:"mayGo,omitempty"`
}

// Take reads every source. All must be readable: a set with a hole proves nothing.
// keep is how long snapshots are kept; 0 if nobody said.
func Take(ctx context.Context, sources []etcdstore.Source, o Options, keep time.Duration) (*Inventory, error) {
	inv := &Inventory{APIVersion: InventoryVersion, Snapshots: []Snapshot{}, Keys: []Needed{}}
	for _, s := range sources {
		r, err := Scan(ctx, s, o)
		if err != nil {
			return nil, err
		}
		inv.Snapshots = append(inv.Snapshots, snapshotOf(r))
	}
	slices.SortStableFunc(inv.Snapshots, func(a, b Snapshot) int {
		return cmp.Or(a.Source.FileTime.Compare(b.Source.FileTime), cmp.Compare(a.Source.Revision, b.Source.Revision))
	})
	for i := range inv.Snapshots[:max(len(inv.Snapshots)-1, 0)] {
		if a, b := inv.Snapshots[i].Source, inv.Snapshots[i+1].Source; a.Revision > b.Revision {
			inv.Warnings = append(inv.Warnings, fmt.Sprintf("%s is older than %s by its file time and newer by its revision: file times were lost in copying, or these are different clusters", a.File, b.File))
		}
	}
	inv.need(keep)
	return inv, nil
}

func snapshotOf(r *Report) Snapshot {
	s := Snapshot{Source: r.Source, Objects: r.Totals.Total, Plain: r.Totals.Plain + r.Totals.AsIs, Broken: r.Totals.Broken, Keys: r.Keys}
	for i := range r.Keys {
		s.Seeds += r.Keys[i].Seeds
		s.Wrapped += r.Keys[i].LocalKEKs
	}
	return s
}

func (inv *Inventory) need(keep time.Duration) {
	byID := map[string]*Needed{}
	for i, s := range inv.Snapshots {
		for _, k := range s.Keys {
			n := byID[k.ID]
			if n == nil {
				n = &Needed{}
				byID[k.ID] = n
			}
			n.Key, n.LastFile, n.LastTime, n.Newest = k, s.Source.File, s.Source.FileTime, i == len(inv.Snapshots)-1
		}
	}
	for _, n := range byID {
		if keep > 0 && !n.Newest {
			day := Expires(n.LastTime, keep)
			n.MayGo = &day
		}
		inv.Keys = append(inv.Keys, *n)
	}
	if keep > 0 {
		inv.Keep = keep.String()
	}
	slices.SortFunc(inv.Keys, func(a, b Needed) int { return cmp.Or(a.LastTime.Compare(b.LastTime), cmp.Compare(a.ID, b.ID)) })
}

// Expires is the first day on which a snapshot of that time is not kept any more: the one
// after the last on which it is.
func Expires(t time.Time, keep time.Duration) time.Time {
	return t.Add(keep).UTC().Truncate(24*time.Hour).AddDate(0, 0, 1)
}
