package custody

import (
	"encoding/hex"
	"log/slog"
	"time"

	"kms-plugin.io/internal/boottime"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
)

// saveEvery bounds how often a good probe is written down.
const saveEvery = 30 * time.Second

// loadState reads the state file; a damaged one is reported and ignored.
func (k *Custodian) loadState(clusterID string) {
	k.memory = state.State{ClusterID: clusterID}
	if k.stateDir == "" {
		return
	}
	s, err := state.Load(k.stateDir, clusterID)
	if err != nil {
		k.observer.Event(Event{Kind: "state", Level: slog.LevelWarn, Text: "state file is ignored and will be replaced; nothing is lost but remote calls", Err: err})
		return
	}
	if s != nil {
		k.memory = *s
	}
	if k.memory.Active != nil && len(k.memory.Journal) == 0 {
		k.memory.Active = nil // half a state: never written so by us
	}
}

// remembered is the active key_id of an earlier process, if the ring still
// stands for it: Status can report it before any remote call, so that an API
// server that runs with it goes on through a restart of ours in an outage.
func (k *Custodian) remembered(v *view) *active {
	m := k.memory.Active
	if m == nil {
		return nil
	}
	h, err := envelope.Parse(m.Header)
	if err != nil || h.Cluster != envelope.ClusterDigest(v.ring.ClusterID()) {
		return nil
	}
	e, err := v.ring.Lookup(h.Identity, h.Context)
	if err != nil {
		return nil
	}
	label, _, err := keys.SplitKeyID(m.KeyID)
	if err != nil || keys.KeyID(label, h.Facts(v.ring.ClusterID())) != m.KeyID {
		return nil
	}
	entry := e
	if label != e.Name || h.Generation != e.Generation {
		// The ring has moved on: report the old key_id until the new one is ready.
		old := *e
		old.Name, old.Generation = label, h.Generation
		entry = &old
	}
	a, err := newActive(v.held[e], entry, v.ring.ClusterID(), h)
	if err != nil {
		return nil
	}
	return a
}

// touch writes the state after a good probe, but not each time.
func (k *Custodian) touch() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.saved) >= saveEvery {
		k.save()
	}
}

func (k *Custodian) saveState() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.save()
}

// save writes the state file; the caller holds mu. A failure is reported once
// and changes nothing: the file is disposable.
func (k *Custodian) save() {
	if k.stateDir == "" {
		return
	}
	k.saved = time.Now()
	if v := k.view.Load(); v != nil {
		k.memory.Keys = k.remembering(v)
	}
	err := state.Save(k.stateDir, &k.memory)
	if err != nil && k.saveErr == nil {
		k.observer.Event(Event{Kind: "state", Level: slog.LevelError, Text: "state file cannot be written; a restart during an outage would not serve", Err: err})
	}
	if err == nil && k.saveErr != nil {
		k.observer.Event(Event{Kind: "state", Level: slog.LevelInfo, Text: "state file is written again"})
	}
	k.saveErr = err
}

// remembering is what the state file keeps of each key of a view.
func (k *Custodian) remembering(v *view) []state.Key {
	var out []state.Key
	for _, e := range v.ring.Entries() {
		h := v.held[e]
		d := e.ContextDigest()
		m := state.Key{Name: e.Name, Identity: e.KEK.Identity(), Context: hex.EncodeToString(d[:]), Role: e.Role,
			ReadableSince: h.readableSince.UTC(), Kept: h.kept.Load()}
		if at := h.lastOpened.Load(); at > 0 {
			m.LastOpened = time.Unix(at, 0).UTC()
		}
		if u := h.health.Unwrap.Verdict(); u.HasGood {
			now := boottime.Take()
			m.LastGood = boottime.Stamp{Wall: now.Wall.Add(-u.SinceOK), BootID: now.BootID, Boot: now.Boot - u.SinceOK}
		}
		out = append(out, m)
	}
	return out
}

func journalEntry(a *active) state.Reported {
	d := a.entry.ContextDigest()
	return state.Reported{KeyID: a.keyID, Identity: a.entry.KEK.Identity(), Context: hex.EncodeToString(d[:]),
		Generation: a.entry.Generation, Wrapping: a.wrapping(), Recipients: a.recipients(), First: time.Now().UTC().Round(time.Second)}
}
