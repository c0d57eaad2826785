package snapshot

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
)

// seen is a set of keys of which it holds 128 bits of a keyed hash each: 16 bytes
// for a key of any length. With a billion keys two are taken for one with a
// chance of one in 10^20, and nobody can choose keys that collide.
type seen struct {
	slots [][2]uint64 // open addressing; a zero slot is empty
	mask  uint64
	n     int
	buf   []byte
}

func newSeen(expect int) *seen {
	size := 1 << 10
	for size < expect*3/2 && size < maxSeen*2 {
		size <<= 1
	}
	s := &seen{slots: make([][2]uint64, size), mask: uint64(size - 1), buf: make([]byte, 16, 512)}
	_, _ = rand.Read(s.buf) // never fails (crypto/rand)
	return s
}

// clear empties the set.
func (s *seen) clear() {
	clear(s.slots)
	s.n = 0
}

// add tells whether a key belongs to this pass, and whether it is seen for the
// first time.
func (s *seen) add(key []byte, pass, passes int) (first, mine bool) {
	s.buf = append(s.buf[:16], key...)
	h := sha256.Sum256(s.buf)
	if passes > 1 && !inPass(key, pass, passes) {
		return false, false
	}
	slot := [2]uint64{binary.BigEndian.Uint64(h[:]), binary.BigEndian.Uint64(h[8:]) | 1}
	if !s.insert(slot) {
		return false, true
	}
	if s.n++; s.n*4 > len(s.slots)*3 {
		s.grow()
	}
	return true, true
}

// inPass divides keys evenly, the same way in every pass.
func inPass(key []byte, pass, passes int) bool {
	h := sha256.Sum256(key)
	return binary.BigEndian.Uint64(h[:])%uint64(passes) == uint64(pass)
}

func (s *seen) insert(slot [2]uint64) bool {
	for i := slot[0] & s.mask; ; i = (i + 1) & s.mask {
		switch s.slots[i] {
		case slot:
			return false
		case [2]uint64{}:
			s.slots[i] = slot
			return true
		}
	}
}

func (s *seen) grow() {
	old := s.slots
	s.slots = make([][2]uint64, 2*len(old))
	s.mask = uint64(len(s.slots) - 1)
	for _, slot := range old {
		if slot != [2]uint64{} {
			s.insert(slot)
		}
	}
}
