package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"kms-plugin.io/internal/custody"
	"kms-plugin.io/internal/health"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/localfile"
)

// past is the life of an instance that went from one key to the next, twice.
type past struct {
	dir    string    // keysets k0 to k2, and the states s1 and s2
	keyIDs [3]string // of the keys, in the order in which they wrote
}

// lived is the directory of history, which TestMain removes; "" while nobody asked.
var lived string

// history is lived once, by a real instance: s1 is its state when k1 writes, s2 when k2
// does.
var history = sync.OnceValues(func() (p past, err error) {
	if p.dir, err = os.MkdirTemp("", "crash"); err != nil {
		return p, err
	}
	lived = p.dir
	for n := range p.keyIDs {
		err = errors.Join(err, localfile.Create(p.keyset(n)))
	}
	states := filepath.Join(p.dir, "state")
	err = errors.Join(err, os.Mkdir(states, 0o700))
	for n := range p.keyIDs {
		if err != nil {
			return p, err
		}
		if p.keyIDs[n], err = p.live(states, n, nil); err == nil {
			err = copyState(states, filepath.Join(p.dir, fmt.Sprint("s", n)))
		}
	}
	return p, err
})

func (p past) keyset(n int) string { return filepath.Join(p.dir, fmt.Sprint("k", n)) }

// ring has all three keys; one writes.
func (p past) ring(writes int) (*keys.Ring, error) {
	var entries []keys.Entry
	for n := range p.keyIDs {
		k, err := localfile.New(p.keyset(n))
		if err != nil {
			return nil, err
		}
		e := keys.Entry{Name: fmt.Sprint("k", n), Role: keys.RoleRead, Generation: 1, KEK: k}
		if n == writes {
			e.Role = keys.RoleWrite
		}
		entries = append(entries, e)
	}
	return keys.NewRing("c", keys.WrapLocalKEK, entries...)
}

func (p past) instance(dir string, writes int) (*custody.Custodian, error) {
	r, err := p.ring(writes)
	if err != nil {
		return nil, err
	}
	return custody.New(custody.Config{Ring: r, StateDir: dir, Observer: deaf{}, Tuning: custody.Tuning{ProbeInterval: 10 * time.Millisecond, Observations: 1,
		Limits: health.Limits{MaxOutage: time.Hour, MaxOutageDecrypt: time.Hour, KeyState: time.Hour, Authorization: time.Hour, Credential: time.Hour, WipeAfter: time.Hour}}})
}

// live runs an instance until the key that writes has its key_id in Status and in the
// state file; report is told each other one on the way there.
func (p past) live(dir string, writes int, report func(keyID string)) (string, error) {
	c, err := p.instance(dir, writes)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	id, err := p.await(c, dir, writes, report)
	cancel()
	return id, errors.Join(err, <-done)
}

func (p past) await(c *custody.Custodian, dir string, writes int, report func(string)) (string, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	last := ""
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); <-tick.C {
		id, err := c.KeyID()
		if err != nil {
			continue
		}
		if last = id; report != nil {
			report(id)
		}
		s, err := state.Load(dir, "c")
		if err == nil && s != nil && s.Active != nil && s.Active.KeyID == id && len(s.Journal) > 0 && id[:3] == fmt.Sprintf("k%d:", writes) {
			return id, nil
		}
	}
	return "", fmt.Errorf("k%d does not write after half a minute, key_id is %q", writes, last)
}

// layState is what was there before: k1 writes, and k0 was left.
func layState(path string) error {
	p, err := history()
	if err != nil {
		return err
	}
	return errors.Join(copyState(filepath.Join(p.dir, "s1"), filepath.Dir(path)), copyState(filepath.Join(p.dir, "s2"), nextOf(path)))
}

func nextOf(path string) string { return filepath.Join(filepath.Dir(path), "next") }

// saveNext is the save by which k2 becomes the one that writes.
func saveNext(path string) error {
	s, err := state.Load(nextOf(path), "c")
	if err != nil {
		return err
	}
	return state.Save(filepath.Dir(path), s)
}

func copyState(from, to string) error {
	data, err := os.ReadFile(filepath.Join(from, "state.json"))
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(to, 0o700), os.WriteFile(filepath.Join(to, "state.json"), data, 0o600))
}

// startsFromWhatIsLeft: an instance reports the key_id it had and then that of k2, which
// it goes on with when it starts again. Those that were left never come back, neither
// by themselves nor by a configuration that asks for their key.
func startsFromWhatIsLeft(path, _ string) error {
	p, err := history()
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	s, err := state.Load(dir, "c")
	if err != nil || s == nil || s.Active == nil || !slices.Contains(p.keyIDs[1:], s.Active.KeyID) {
		return fmt.Errorf("state is %+v, %v", s, err)
	}
	had, now := s.Active.KeyID, p.keyIDs[2]
	for range 2 {
		var seen []string
		if _, err := p.live(dir, 2, func(id string) { seen = append(seen, id) }); err != nil {
			return err
		}
		if seen = slices.Compact(seen); len(seen) > 2 || seen[0] != had || seen[len(seen)-1] != now {
			return fmt.Errorf("started with %s it reported %q, want that and then %s", had, seen, now)
		}
		had = now
	}
	for n := range 2 {
		var g *custody.GuardError
		if _, err := p.instance(dir, n); !errors.As(err, &g) {
			return fmt.Errorf("with k%d as the key that writes again it starts: %v", n, err)
		}
	}
	return nil
}

// deaf is told everything and keeps nothing.
type deaf struct{}

func (deaf) Event(custody.Event) {}
func (deaf) CacheResult(string)  {}
func (deaf) RetiredOpen(string)  {}
func (deaf) Changed()            {}
