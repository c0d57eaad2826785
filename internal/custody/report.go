package custody

import (
	"time"

	"kms-plugin.io/internal/health"
	"kms-plugin.io/pkg/keys"
)

// Report is what an instance knows of itself, for metrics.
type Report struct {
	KeyID     string // "" while none is known
	Keys      []KeyReport
	LocalKEKs []string // in memory, first 16 hex digits of each id
	Ready     error
	State     error // why the state file cannot be written
}

// KeyReport is one key of the ring.
type KeyReport struct {
	Name         string
	Role         keys.Role
	Active       bool // its key_id is reported
	Wrap, Unwrap health.Verdict
	Regions      []RegionReport // nil for a key with one
	Recipients   []string       // names of its co-recipients, in their order
	LastOpened   time.Time      // a seed under it, zero never
}

// Report reads the state of now.
func (k *Custodian) Report() Report {
	v := k.view.Load()
	r := Report{LocalKEKs: k.cache.ids(), Ready: k.Ready()}
	k.mu.Lock()
	r.State = k.saveErr
	k.mu.Unlock()
	if v.active != nil {
		r.KeyID = v.active.keyID
	}
	for _, e := range v.ring.Entries() {
		h := v.held[e]
		one := KeyReport{Name: e.Name, Role: e.Role, Active: v.active != nil && v.active.held == h,
			Wrap: h.health.Wrap.Verdict(), Unwrap: h.health.Unwrap.Verdict()}
		for _, o := range e.Recipients() {
			one.Recipients = append(one.Recipients, o.Name)
		}
		if at := h.lastOpened.Load(); at > 0 {
			one.LastOpened = time.Unix(at, 0)
		}
		if several, ok := e.KEK.(keys.Regional); ok {
			one.Regions = h.regions.report(several)
		}
		r.Keys = append(r.Keys, one)
	}
	return r
}
