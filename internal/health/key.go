package health

import "kms-plugin.io/internal/boottime"

// Key joins the machines of the two operations of one key.
type Key struct {
	Wrap, Unwrap *Machine
}

// NewKey starts with nothing known.
func NewKey(clock *boottime.Clock, l Limits) *Key {
	return &Key{Wrap: NewMachine(clock, l), Unwrap: NewMachine(clock, l)}
}

// SetLimits changes the limits of both.
func (k *Key) SetLimits(l Limits) {
	k.Wrap.SetLimits(l)
	k.Unwrap.SetLimits(l)
}

// Seal says whether new seeds may be sealed: both operations must be open, for
// what cannot be unwrapped must not be written.
func (k *Key) Seal() Verdict {
	w, u := k.Wrap.Verdict(), k.Unwrap.Verdict()
	if w.SealShut || !u.SealShut && w.State == Degraded {
		return w
	}
	return u
}

// Open says whether stored seeds may be opened. A key that may only not wrap
// still opens.
func (k *Key) Open() Verdict { return k.Unwrap.Verdict() }
