package daemon

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/pkg/keys"
)

// keepers renew the credentials of the keys in force, each in a goroutine of its
// own, so that neither a probe nor a call waits for one.
type keepers struct {
	observer *observer
	inForce  atomic.Pointer[map[string]keys.Credentialed] // by name of the key, of further regions "key/region"
	changed  chan struct{}                                // capacity 1
}

func newKeepers(o *observer) *keepers {
	return &keepers{observer: o, changed: make(chan struct{}, 1)}
}

// set says which keys are in force.
func (k *keepers) set(entries []*keys.Entry) {
	next := map[string]keys.Credentialed{}
	add := func(name string, kek keys.KEK) {
		if m, ok := kek.(metered); ok {
			kek = m.KEK
		}
		if c, ok := kek.(keys.Credentialed); ok {
			next[name] = c
		}
	}
	for _, e := range entries {
		several, ok := e.KEK.(keys.Regional)
		if !ok {
			add(e.Name, e.KEK)
			continue
		}
		for i, r := range several.Regions() {
			name := e.Name // the preferred region speaks for the key
			if i > 0 {
				name += "/" + r.Name
			}
			add(name, r.KEK)
		}
	}
	k.inForce.Store(&next)
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// run keeps the credentials of what is in force until ctx ends.
func (k *keepers) run(ctx context.Context) error {
	var g errgroup.Group
	running := map[keys.Credentialed]context.CancelFunc{}
	for ctx.Err() == nil {
		wanted := map[keys.Credentialed]bool{}
		for name, c := range *k.inForce.Load() {
			wanted[c] = true
			if running[c] == nil {
				own, stop := context.WithCancel(ctx)
				running[c] = stop
				g.Go(func() error {
					c.KeepCredential(own, k.teller(name, c))
					return nil
				})
			}
		}
		for c, stop := range running {
			if !wanted[c] {
				stop()
				delete(running, c)
			}
		}
		select {
		case <-ctx.Done():
		case <-k.changed:
		}
	}
	for _, stop := range running {
		stop()
	}
	return g.Wait()
}

// teller logs when renewing begins to fail and when it works again.
func (k *keepers) teller(name string, c keys.Credentialed) func() {
	var once sync.Once
	failing := false
	return func() {
		d := c.Credential()
		log := k.observer.log.With("key", name, "kind", d.Kind, "source", d.Source)
		switch {
		case d.Err != nil && !failing:
			log.Error("credential cannot be renewed; the key is served until it ends", "ends", d.Expires, "error", d.Err.Error())
		case d.Err == nil && failing:
			log.Info("credential is renewed again", "ends", d.Expires)
		case d.Err == nil:
			once.Do(func() { log.Info("credential fetched", "ends", d.Expires) })
		}
		failing = d.Err != nil
		k.observer.Changed()
	}
}

// report is what metrics show.
func (k *keepers) report() []metrics.Credential {
	all := k.inForce.Load()
	if all == nil {
		return nil
	}
	var out []metrics.Credential
	for _, name := range slices.Sorted(maps.Keys(*all)) {
		d := (*all)[name].Credential()
		out = append(out, metrics.Credential{Key: name, Kind: d.Kind, Source: d.Source, Expires: d.Expires, Failing: d.Err != nil})
	}
	return out
}
