package metrics

import (
	"strconv"
	"time"
)

// Key is the state of one key.
type Key struct {
	Name         string
	Role         string
	Active       bool   // its key_id is reported
	Wrap, Unwrap string // states
	LastGood     time.Time
	Regions      []Region // of a key with several
	Recipients   []string // co-recipients, in their order
	Closed       Closed
	LastOpened   time.Time // zero: never
}

// Closed is why nothing is opened under a key; the zero one opens.
type Closed struct {
	Class string
	Since time.Time
}

// Region is the state of one region of a key.
type Region struct {
	Name         string
	InUse        bool
	Wrap, Unwrap string // what it last answered
}

// RegionStates are the values of the state label of a region.
var RegionStates = []string{"unknown", "ok", "outage", "credential", "authorization", "key-state", "data"}

// States are the values of the state label.
var States = []string{"unknown", "ok", "degraded", "closed"}

// SetKeys replaces what is known of all keys.
func (m *Metrics) SetKeys(keys []Key) {
	m.whole.Lock()
	defer m.whole.Unlock()
	m.keyInfo.Reset()
	m.keyState.Reset()
	m.lastGood.Reset()
	m.regionState.Reset()
	m.regionInUse.Reset()
	m.recipient.Reset()
	m.closed.Reset()
	m.lastOpen.Reset()
	for _, k := range keys {
		m.setRegions(k)
		m.setRevocation(k)
		m.keyInfo.WithLabelValues(k.Name, k.Role, strconv.FormatBool(k.Active)).Set(1)
		for op, now := range map[string]string{"wrap": k.Wrap, "unwrap": k.Unwrap} {
			for _, s := range States {
				m.keyState.WithLabelValues(k.Name, op, s).Set(oneIf(s == now))
			}
		}
		if !k.LastGood.IsZero() {
			m.lastGood.WithLabelValues(k.Name).Set(seconds(k.LastGood))
		}
	}
}

func (m *Metrics) setRevocation(k Key) {
	for i, r := range k.Recipients {
		m.recipient.WithLabelValues(k.Name, r).Set(float64(i + 1))
	}
	if k.Closed.Class != "" {
		m.closed.WithLabelValues(k.Name, k.Closed.Class).Set(seconds(k.Closed.Since))
	}
	if !k.LastOpened.IsZero() {
		m.lastOpen.WithLabelValues(k.Name).Set(seconds(k.LastOpened))
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func (m *Metrics) setRegions(k Key) {
	for _, r := range k.Regions {
		m.regionInUse.WithLabelValues(k.Name, r.Name).Set(oneIf(r.InUse))
		for op, now := range map[string]string{"wrap": r.Wrap, "unwrap": r.Unwrap} {
			for _, s := range RegionStates {
				m.regionState.WithLabelValues(k.Name, r.Name, op, s).Set(oneIf(s == now))
			}
		}
	}
}
