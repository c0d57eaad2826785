// Package health turns the answers that a prober gets from a KEK into what may
// still be served: for each key and operation, four classes of failure with a
// timer each. An outage closes nothing before its limit; a denial closes within
// its bound. Request errors never feed it: only a prober's own canaries do. It
// knows no provider, no gRPC and does no I/O.
package health

import (
	"errors"
	"math"
	"sync"
	"time"

	"kms-plugin.io/internal/boottime"
	"kms-plugin.io/pkg/keys"
)

// Limits say how long each class may last before the key closes.
type Limits struct {
	MaxOutage        time.Duration // since the last good probe, or the first that failed, until sealing closes
	MaxOutageDecrypt time.Duration // since the last good probe, until opening closes and memory is wiped
	KeyState         time.Duration // since the first such answer
	Authorization    time.Duration
	Credential       time.Duration
	WipeAfter        time.Duration // from a denial's close to the wipe of memory
}

// MinObservations is how many answers of one denying class must have been seen
// since the last good probe before that class can close a key: one stray answer
// is not a revocation.
const MinObservations = 3

// State is the summary that people and metrics see.
type State string

// The states.
const (
	Unknown  State = "unknown" // never answered yet
	OK       State = "ok"
	Degraded State = "degraded" // failing, but still served
	Closed   State = "closed"
)

var errLongAgo = errors.New("the last good answer of its KMS is longer ago than health.maxOutage")

const never = time.Duration(math.MaxInt64)

// Machine judges one operation of one key. Safe for concurrent use.
type Machine struct {
	clock *boottime.Clock

	mu       sync.Mutex
	limits   Limits
	hasGood  bool
	lastGood time.Duration                         // without a good one: the first answer at all
	first    [keys.ClassKeyState + 1]time.Duration // first answer of the class since the last good one
	count    [keys.ClassKeyState + 1]int
	agreed   [keys.ClassKeyState + 1]time.Duration // when count reached MinObservations
	last     keys.Class
	lastErr  error
	observed bool
}

// NewMachine starts with nothing known.
func NewMachine(clock *boottime.Clock, l Limits) *Machine {
	return &Machine{clock: clock, limits: l}
}

// SetLimits changes the limits; timers keep running.
func (m *Machine) SetLimits(l Limits) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.limits = l
}

// Remember sets the last good probe of an earlier process.
func (m *Machine) Remember(elapsed time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.hasGood {
		m.hasGood, m.lastGood = true, m.clock.Now()-elapsed
	}
}

// Observe records the answer to one canary. Only success ends a class: a lighter
// failure in between does not, or whoever blocks the network could undo a
// denial. A cancelled canary says nothing; one that the KMS calls damaged is
// counted as an outage, since the key itself was not denied.
func (m *Machine) Observe(err error) {
	c := keys.ClassOf(err)
	if c == keys.ClassCanceled {
		return
	}
	if c == keys.ClassData {
		c = keys.ClassOutage
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.Now()
	if !m.hasGood && !m.observed {
		m.lastGood = now // so that an outage from the start on has its limit too
	}
	m.last, m.lastErr, m.observed = c, err, true
	if c == keys.ClassNone {
		m.hasGood, m.lastGood = true, now
		m.first, m.count = [keys.ClassKeyState + 1]time.Duration{}, [keys.ClassKeyState + 1]int{}
		return
	}
	if m.count[c] == 0 {
		m.first[c] = now
	}
	if m.count[c]++; m.count[c] == MinObservations {
		m.agreed[c] = now
	}
}

// Verdict is what one operation's machine says at one moment.
type Verdict struct {
	State    State
	Class    keys.Class // of the last answer, or of what closed the key
	Err      error      // last failure, nil when OK
	HasGood  bool
	SinceOK  time.Duration // since the last good probe, if HasGood
	SealShut bool          // must not be used for new seeds
	OpenShut bool          // must not open anything
	Wipe     bool          // key material of it must leave memory
	// ClosedFor is since when it may open nothing, if OpenShut.
	ClosedFor time.Duration
}

// Verdict judges now.
func (m *Machine) Verdict() Verdict {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.clock.Now()
	v := Verdict{Class: m.last, Err: m.lastErr, HasGood: m.hasGood, SinceOK: now - m.lastGood}
	denyAt, denyClass := m.denied()
	outage := m.observed && m.last != keys.ClassNone || m.hasGood && !m.observed
	v.SealShut = now >= denyAt || outage && v.SinceOK >= m.limits.MaxOutage
	v.OpenShut = now >= denyAt || outage && v.SinceOK >= m.limits.MaxOutageDecrypt
	v.Wipe = denyAt != never && now >= denyAt+m.limits.WipeAfter || outage && v.SinceOK >= m.limits.MaxOutageDecrypt
	if v.OpenShut {
		v.ClosedFor = now - denyAt // negative if not by a denial
		if outage {
			v.ClosedFor = max(v.ClosedFor, v.SinceOK-m.limits.MaxOutageDecrypt)
		}
	}
	switch {
	case now >= denyAt:
		v.Class = denyClass
	case v.SealShut && v.Err == nil: // after a restart, before the first probe
		v.Class, v.Err = keys.ClassOutage, errLongAgo
	}
	v.State = m.state(v)
	return v
}

func (m *Machine) state(v Verdict) State {
	switch {
	case v.SealShut:
		return Closed
	case !m.observed:
		return Unknown
	case m.last == keys.ClassNone:
		return OK
	}
	return Degraded
}

// denied is when a denying class closes the key, and which.
func (m *Machine) denied() (at time.Duration, class keys.Class) {
	at = never
	for _, d := range [...]struct {
		class keys.Class
		limit time.Duration
	}{
		{keys.ClassKeyState, m.limits.KeyState},
		{keys.ClassAuthorization, m.limits.Authorization},
		{keys.ClassCredential, m.limits.Credential},
	} {
		if m.count[d.class] < MinObservations {
			continue
		}
		if t := max(m.first[d.class]+d.limit, m.agreed[d.class]); t < at {
			at, class = t, d.class
		}
	}
	return at, class
}
