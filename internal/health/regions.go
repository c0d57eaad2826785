package health

import (
	"errors"
	"slices"

	"kms-plugin.io/pkg/keys"
)

// Answer is what one region said to a canary.
type Answer struct {
	Err   error
	Known bool // it has answered well before, so the key is there
}

// ObserveRegions records what the regions of one key answered at one moment. A
// denial in one region does not count while another serves, except that a key
// which is disabled or gone in one region is a key taken away, unless the quorum
// is all. Where the key never was, its absence is a mistake and takes nothing away
// from a region that has it.
func (m *Machine) ObserveRegions(answers []Answer, q keys.Quorum) {
	var good, gone bool
	var bad []error
	for _, a := range answers {
		switch c := keys.ClassOf(a.Err); {
		case c == keys.ClassCanceled:
		case c == keys.ClassNone:
			good = true
		default:
			bad = append(bad, a.Err)
			gone = gone || c == keys.ClassKeyState && q != keys.QuorumAll && (a.Known || !absent(a.Err))
		}
	}
	switch {
	case good && !gone:
		m.Observe(nil)
		return
	case good: // only the key's state counts
		bad = slices.DeleteFunc(bad, func(err error) bool { return keys.ClassOf(err) != keys.ClassKeyState })
	}
	// The heaviest last: it is what people are told.
	slices.SortStableFunc(bad, func(a, b error) int { return weight(a) - weight(b) })
	for i, err := range bad {
		if i == 0 || weight(err) != weight(bad[i-1]) {
			m.Observe(err)
		}
	}
}

func absent(err error) bool {
	var e *keys.Error
	return errors.As(err, &e) && e.Absent
}

func weight(err error) int { return int(keys.ClassOf(err)) }
