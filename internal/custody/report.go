package custody

import (
	"kms-plugin.io/internal/health"
	"kms-plugin.io/pkg/keys"
)

// Report is what an instance knows of itself, for metrics.
type Report struct {
	KeyID     string // "" while none is known
	Keys      []KeyReport
	LocalKEKs []string // in memory, first 16 hex digits of each id
	Ready     error
}

// KeyReport is one key of the ring.
type KeyReport struct {
	Name         string
	Role         keys.Role
	Active       bool // its key_id is reported
	Wrap, Unwrap health.Verdict
	Regions      []RegionReport // nil for a key with one
}

// Report reads the state of now.
func (k *Custodian) Report() Report {
	v := k.view.Load()
	r := Report{LocalKEKs: k.cache.ids(), Ready: k.Ready()}
	if v.active != nil {
		r.KeyID = v.active.keyID
	}
	for _, e := range v.ring.Entries() {
		h := v.held[e]
		one := KeyReport{Name: e.Name, Role: e.Role, Active: v.active != nil && v.active.held == h,
			Wrap: h.health.Wrap.Verdict(), Unwrap: h.health.Unwrap.Verdict()}
		if several, ok := e.KEK.(keys.Regional); ok {
			one.Regions = h.regions.report(several)
		}
		r.Keys = append(r.Keys, one)
	}
	return r
}
