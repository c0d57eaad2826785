// Package state is the disposable memory of one plugin instance between two
// starts: wrapped keys, reported key_ids and when each KEK was last seen well.
// It holds no secret. Losing it costs remote calls and a new local KEK, nothing
// else; a damaged file is reported and ignored. It is trusted as root is: who
// can write it could make this instance seal under a key of theirs.
package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"kms-plugin.io/internal/boottime"
	"kms-plugin.io/internal/durable"
	"kms-plugin.io/pkg/keys"
)

// File is the name of the state file below the state directory.
const File = "state.json"

const (
	version = 1
	maxSize = 4 << 20
)

// State is what is remembered.
type State struct {
	Version   int        `json:"version"`
	ClusterID string     `json:"clusterID"`
	Active    *Active    `json:"active,omitempty"`
	Turned    time.Time  `json:"turned,omitzero"` // latest activateAt that ever came into force
	Keys      []Key      `json:"keys,omitempty"`
	Journal   []Reported `json:"journal,omitempty"`
}

// Active is what Status last reported.
type Active struct {
	KeyID  string `json:"keyID"`
	Header []byte `json:"header"` // as stored in annotations: the local KEK is wrapped in it
}

// Key is what is known of one KEK of the ring.
type Key struct {
	Name          string         `json:"name"`
	Identity      string         `json:"identity"`
	Context       string         `json:"context"` // hex of the context digest
	Role          keys.Role      `json:"role"`
	ReadableSince time.Time      `json:"readableSince"`
	LastOpened    time.Time      `json:"lastOpened,omitzero"`
	LastGood      boottime.Stamp `json:"lastGood,omitzero"`
	Kept          *Kept          `json:"kept,omitempty"`
}

// Kept is a wrapped blob by which a key can be probed without wrapping.
type Kept struct {
	Type   keys.BlobType `json:"type"`
	Blob   []byte        `json:"blob"`
	Anchor string        `json:"anchor,omitempty"` // of the audit log, in its encryption context
}

// Reported is a key_id that Status has reported, with what it stood for.
type Reported struct {
	KeyID      string        `json:"keyID"`
	Identity   string        `json:"identity"`
	Context    string        `json:"context"`
	Generation uint64        `json:"generation"`
	Wrapping   keys.Wrapping `json:"wrapping"`
	Recipients []string      `json:"recipients,omitempty"` // identities, sorted
	First      time.Time     `json:"first"`
}

// IsOf says whether the key_id was that of an entry as configured now, whatever
// material it stood for.
func (r Reported) IsOf(e *keys.Entry, w keys.Wrapping) bool {
	d := e.ContextDigest()
	var also []string
	for _, o := range e.Recipients() {
		also = append(also, o.KEK.Identity())
	}
	slices.Sort(also)
	return r.Identity == e.KEK.Identity() && r.Context == hex.EncodeToString(d[:]) && r.Generation == e.Generation && r.Wrapping == w &&
		slices.Equal(r.Recipients, also)
}

// ErrDamaged is returned when the file is not whole or not ours; it is ignored
// and replaced.
var ErrDamaged = errors.New("state file is damaged")

// Load reads the state of a cluster. No file at all is (nil, nil). A file of
// another owner, writable by others, of another cluster or damaged is an error
// that wraps ErrDamaged.
func Load(dir, clusterID string) (*State, error) {
	path := filepath.Join(dir, File)
	data, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrDamaged, path, err)
	}
	if s.ClusterID != clusterID {
		return nil, fmt.Errorf("%w: %q belongs to cluster %q, not %q", ErrDamaged, path, s.ClusterID, clusterID)
	}
	return s, nil
}

func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %q is not a regular file", ErrDamaged, path)
	case !ok || st.Uid != uint32(os.Geteuid()):
		return nil, fmt.Errorf("%w: %q belongs to another user", ErrDamaged, path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%w: %q has mode %#o, not 0600", ErrDamaged, path, info.Mode().Perm())
	case info.Size() > maxSize:
		return nil, fmt.Errorf("%w: %q has %d bytes", ErrDamaged, path, info.Size())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return data, nil
}

// decode parses one line of hex SHA-256 over what follows, then JSON.
func decode(data []byte) (*State, error) {
	sum, body, ok := bytes.Cut(data, []byte("\n"))
	if !ok {
		return nil, errors.New("it is cut short")
	}
	want := sha256.Sum256(body)
	if string(sum) != hex.EncodeToString(want[:]) {
		return nil, errors.New("its checksum does not match")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	var s State
	if err := dec.Decode(&s); err != nil {
		return nil, err
	}
	if s.Version != version {
		return nil, fmt.Errorf("its version is %d, this release reads %d", s.Version, version)
	}
	return &s, nil
}

// Save replaces the file as a whole: a crash leaves the old one or the new one.
func Save(dir string, s *State) error {
	s.Version = version
	body, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	body = append(body, '\n')
	sum := sha256.Sum256(body)
	data := slices.Concat([]byte(hex.EncodeToString(sum[:])), []byte("\n"), body)
	return durable.WriteFile(filepath.Join(dir, File), data, 0o600)
}
