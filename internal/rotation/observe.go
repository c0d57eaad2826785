package rotation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/drill"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/pkg/keys"
)

// Scope is what a plan looks at.
type Scope struct {
	Servers    []*kube.Server
	Plugins    []string // listenAddress of each
	Source     etcdstore.Source
	Snapshots  []etcdstore.Source
	Keep       time.Duration // how long snapshots are kept; 0 if nobody said
	Encryption *encryptionconfig.Config
	// Encryptions are the files of all API servers, Encryption first, if they differ.
	Encryptions []*encryptionconfig.Config
	Drills      []*drill.Report // on snapshots
	Config      *config.Config  // of the plugins, as it shall be on every node
	ConfigHash  string          // of that file
	Provider    string          // of the EncryptionConfiguration; "" if only one of KMS v2 writes
	Target      string          // name of the key, or key_id; "" is the key that writes last by Config
	Prefix      string
	Progress    func(done, total int64)
}

// Facts are what a plan is made from.
type Facts struct {
	Provider   string             `json:"provider"`
	Target     string             `json:"target"`               // name in the ring
	KEK        string             `json:"kek"`                  // the cloud's name for it
	KeyIDHash  string             `json:"keyIDHash,omitempty"`  // under which everything shall be, if a plugin or --to tells
	Material   bool               `json:"material"`             // only the material behind the key changes, not the key
	Left       []string           `json:"left,omitempty"`       // what is not under it yet, by resource
	Old        []OldKey           `json:"old"`                  // keys of the ring that shall go
	Newest     *coverage.Snapshot `json:"newestBackup"`         // nil if none was given
	Needed     []coverage.Needed  `json:"backupKeys,omitempty"` // by key, when it was last needed
	Drill      *drill.Report      `json:"drill,omitempty"`      // of the newest backup, if it was given
	Warnings   []string           `json:"warnings,omitempty"`   // about the backups
	Fleet      *fleet.State       `json:"fleet"`
	Revision   int64              `json:"revision"`
	Broken     int64              `json:"broken"` // values that cannot be read
	ConfigHash string             `json:"configHash"`

	encryptions []*encryptionconfig.Config
	several     bool // something is under another key_id of the target: its name does not tell enough
}

// OldKey is one of the ring beside the target.
type OldKey struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	KEK     string `json:"kek"`
	Same    string `json:"sameKEKAs,omitempty"` // another key of the ring that is the same KEK: it must never be disabled
	Objects int64  `json:"objects"`             // still under it, or claiming to be
}

// Observe looks at everything and changes nothing.
func Observe(ctx context.Context, s Scope) (*Facts, error) {
	provider, err := writer(Options{Encryption: s.Encryption, Provider: s.Provider})
	if err != nil {
		return nil, err
	}
	f := &Facts{Provider: provider, ConfigHash: s.ConfigHash, Old: []OldKey{}, encryptions: s.Encryptions}
	if f.Fleet, err = fleet.Look(ctx, s.Servers, provider, s.Plugins); err != nil {
		return nil, err
	}
	if err := f.aim(s); err != nil {
		return nil, err
	}
	names := coverage.NewNames(s.Config, time.Now())
	r, err := coverage.Scan(ctx, s.Source, coverage.Options{Prefix: s.Prefix, Encryption: s.Encryption, Names: names, Progress: s.Progress})
	if err != nil {
		return nil, err
	}
	f.weigh(r)
	if len(s.Snapshots) > 0 {
		inv, err := coverage.Take(ctx, s.Snapshots, coverage.Options{Prefix: s.Prefix, Names: names, Progress: s.Progress}, s.Keep)
		if err != nil {
			return nil, err
		}
		f.Newest, f.Needed, f.Warnings = &inv.Snapshots[len(inv.Snapshots)-1], inv.Keys, inv.Warnings
		f.Drill = f.drillOf(s.Drills)
	}
	return f, nil
}

// aim finds the key that everything shall be under, and its key_id.
func (f *Facts) aim(s Scope) error {
	name := s.Target
	switch label, _, err := keys.SplitKeyID(s.Target); {
	case err == nil:
		name, f.KeyIDHash = label, metrics.KeyIDHash(s.Target)
	case strings.HasPrefix(s.Target, hashPrefix):
		name, f.KeyIDHash = "", s.Target
	}
	var last *config.Key
	for i := range s.Config.Keys {
		k := &s.Config.Keys[i]
		if name == k.Name || name == "" && k.Role == keys.RoleWrite && (last == nil || k.ActivateAt.After(last.ActivateAt)) {
			last = k
		}
	}
	if last == nil {
		return &Error{"plan", fmt.Sprintf("there is no key %q in the plugins' configuration", name), "add it with role: read, or give another --to"}
	}
	f.Target, f.KEK = last.Name, last.Target()
	for _, k := range s.Config.Keys {
		if k.Name != f.Target && !slices.Contains(last.AlsoWrapWith, k.Name) { // a co-recipient stays
			f.Old = append(f.Old, OldKey{Name: k.Name, Role: string(k.Role), KEK: k.Target(), Same: sameKEK(s.Config, k)})
		}
	}
	if f.KeyIDHash == "" {
		f.KeyIDHash = agreed(f.Fleet.Plugins, f.Target)
	}
	return nil
}

// agreed is the key_id that all plugins report which write under the target; "" if
// none does, or they report different ones.
func agreed(plugins []fleet.Plugin, target string) (hash string) {
	for _, p := range plugins {
		if p.Plugin == nil || active(p) != target {
			continue
		}
		if hash != "" && hash != p.KeyIDHash {
			return ""
		}
		hash = p.KeyIDHash
	}
	return hash
}

// sameKEK names another key, not retired, that is the same KEK.
func sameKEK(c *config.Config, k config.Key) string {
	for _, o := range c.Keys {
		if o.Name != k.Name && o.Role != keys.RoleRetired && o.SameKEK(k) {
			return o.Name
		}
	}
	return ""
}

// active is the name of the key whose key_id a plugin reports.
func active(p fleet.Plugin) string {
	for _, k := range p.Keys {
		if k.Active {
			return k.Name
		}
	}
	return ""
}

// weigh counts what is not under the target.
func (f *Facts) weigh(r *coverage.Report) {
	f.Revision, f.Broken = r.Source.Revision, r.Totals.Broken
	onTarget, used := map[string]bool{}, false
	for _, k := range r.Keys {
		onTarget[k.ID] = f.KeyIDHash != "" && k.KeyIDHash == f.KeyIDHash
		label, _, err := keys.SplitKeyID(k.KeyID)
		if err != nil {
			continue
		}
		used = used || label == f.Target
		f.several = f.several || label == f.Target && k.KeyIDHash != f.KeyIDHash
		for i := range f.Old {
			if f.Old[i].Name == label {
				f.Old[i].Objects += k.Objects
			}
		}
	}
	want := Options{Provider: f.Provider}
	for _, x := range r.Resources {
		left := x.Total - x.AsIs
		for _, s := range x.Keys {
			if onTarget[s.Key] {
				left -= s.Objects
			}
		}
		if left > 0 && ours(x, want) {
			f.Left = append(f.Left, fmt.Sprintf("%s: %d of %d", x.Resource, left, x.Total-x.AsIs))
		}
	}
	slices.Sort(f.Left)
	f.Material = used && len(f.Old) == 0
}
