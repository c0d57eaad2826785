package keys

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Role is what a key of the ring may be used for.
type Role string

// The roles. A key leaves the ring only through RoleRetired.
const (
	RoleWrite   Role = "write"   // may become the write key at its ActivateAt
	RoleRead    Role = "read"    // opens what it wrapped elsewhere or earlier
	RoleRetired Role = "retired" // still opens, but each use is counted and alarms
)

// Wrapping says how DEK seeds reach the KEK.
type Wrapping string

// The wrappings.
const (
	WrapLocalKEK Wrapping = "local-kek" // sealed under a local KEK that the KEK wraps
	WrapDirect   Wrapping = "direct"    // each seed wrapped by the KEK itself
)

// Entry is one KEK of the ring. It is immutable once in a Ring.
type Entry struct {
	Name       string // label of the key, first part of key_id; [a-z0-9.-], 1 to 63 bytes
	Role       Role
	ActivateAt time.Time // from when a write key may write; zero: always
	Generation uint64    // raised to use a key again for writing after another one wrote; at least 1
	KEK        KEK
	// RegionQuorum says whose word counts on the state of a Regional KEK.
	RegionQuorum Quorum
	// Context holds the configured pairs that are bound into every remote call
	// beside those of NewContext.
	Context map[string]string
	// AlsoWrapWith names entries whose KEKs wrap this entry's local KEKs too, so
	// that any one of them opens what is sealed. They are part of key_id.
	AlsoWrapWith []string

	recipients []*Entry // of AlsoWrapWith, once in a Ring
}

// ContextDigest names the configured pairs in key_id and in the stored header.
func (e *Entry) ContextDigest() [16]byte { return Context(e.Context).Digest() }

// ErrUnknownKey is returned when stored data names a KEK that is not in the ring.
var ErrUnknownKey = errors.New("KEK is not in the ring")

// Ring is the immutable set of KEKs an instance knows. Safe for concurrent use.
type Ring struct {
	clusterID string
	wrapping  Wrapping
	entries   []*Entry
	index     map[ringKey]*Entry
}

type ringKey struct {
	identity string
	context  [16]byte
}

// NewRing builds a ring. It refuses: no write key; doubled names; the same KEK
// twice under the same encryption context; two write keys with the same
// ActivateAt; names, roles or generations outside their limits; co-recipients
// that are none. Exactly what is wrong is in the error, which names the entry.
func NewRing(clusterID string, w Wrapping, entries ...Entry) (*Ring, error) {
	if err := printable("cluster id", clusterID, 63); err != nil {
		return nil, err
	}
	if w != WrapLocalKEK && w != WrapDirect {
		return nil, fmt.Errorf("wrapping %q is neither %q nor %q", w, WrapLocalKEK, WrapDirect)
	}
	r := &Ring{clusterID: clusterID, wrapping: w, index: map[ringKey]*Entry{}}
	for i := range entries {
		if err := r.add(entries[i]); err != nil {
			return nil, err
		}
	}
	for _, e := range r.entries {
		if err := r.resolve(e); err != nil {
			return nil, err
		}
	}
	if !slices.ContainsFunc(r.entries, func(e *Entry) bool { return e.Role == RoleWrite }) {
		return nil, errors.New("no key has role write")
	}
	return r, nil
}

func (r *Ring) add(e Entry) error {
	if err := ValidateEntry(e); err != nil {
		return err
	}
	for _, o := range r.entries {
		if o.Name == e.Name {
			return fmt.Errorf("key name %q is used twice", e.Name)
		}
		if o.Role == RoleWrite && e.Role == RoleWrite && o.ActivateAt.Equal(e.ActivateAt) {
			return fmt.Errorf("keys %q and %q both have role write and the same activateAt", o.Name, e.Name)
		}
	}
	k := ringKey{e.KEK.Identity(), e.ContextDigest()}
	if o := r.index[k]; o != nil {
		return fmt.Errorf("keys %q and %q are the same KEK under the same encryption context", o.Name, e.Name)
	}
	e.recipients = nil // what another ring found is not ours
	r.entries = append(r.entries, &e)
	r.index[k] = &e
	return nil
}

// ValidateEntry checks one entry by itself.
func ValidateEntry(e Entry) error {
	if !validName(e.Name) {
		return fmt.Errorf("key name %q: 1 to 63 of a-z, 0-9, '-' and '.' are allowed", e.Name)
	}
	if e.Role != RoleWrite && e.Role != RoleRead && e.Role != RoleRetired {
		return fmt.Errorf("key %q: role %q is none of write, read, retired", e.Name, e.Role)
	}
	if e.Generation == 0 {
		return fmt.Errorf("key %q: generation must be at least 1", e.Name)
	}
	if err := printable("identity of key "+e.Name, e.KEK.Identity(), MaxIdentity); err != nil {
		return err
	}
	if err := ValidateContext(e.Context); err != nil {
		return fmt.Errorf("key %q: %w", e.Name, err)
	}
	return nil
}

func validName(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

// ClusterID is bound into every wrap.
func (r *Ring) ClusterID() string { return r.clusterID }

// Wrapping is how new seeds are wrapped. Seeds of either wrapping open.
func (r *Ring) Wrapping() Wrapping { return r.wrapping }

// Entries are all keys in the order given. The caller must not change them.
func (r *Ring) Entries() []*Entry { return r.entries }

// WriteKey is the write key at a time: of the keys with role write whose
// ActivateAt is not after now, the latest. It is nil while none is activated.
func (r *Ring) WriteKey(now time.Time) *Entry {
	var best *Entry
	for _, e := range r.entries {
		if e.Role != RoleWrite || e.ActivateAt.After(now) {
			continue
		}
		if best == nil || e.ActivateAt.After(best.ActivateAt) {
			best = e
		}
	}
	return best
}

// ByName finds an entry by its label, nil if there is none.
func (r *Ring) ByName(name string) *Entry {
	for _, e := range r.entries {
		if e.Name == name {
			return e
		}
	}
	return nil
}

// Find is Lookup without an error: nil if the KEK is not here.
func (r *Ring) Find(identity string, context [16]byte) *Entry {
	return r.index[ringKey{identity, context}]
}

// Lookup finds the entry for what a stored header says. Nothing of the header
// is ever used to address a remote key. Errors wrap ErrUnknownKey.
func (r *Ring) Lookup(identity string, context [16]byte) (*Entry, error) {
	if e := r.index[ringKey{identity, context}]; e != nil {
		return e, nil
	}
	for k, e := range r.index {
		if k.identity == identity {
			return nil, fmt.Errorf("%w: key %q is this KEK, but with another encryptionContext than the data was wrapped under", ErrUnknownKey, e.Name)
		}
	}
	return nil, fmt.Errorf("%w: %q", ErrUnknownKey, identity)
}
