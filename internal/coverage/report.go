package coverage

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/stored"
)

// APIVersion of the JSON form. Fields are only ever added.
const APIVersion = "kms-plugin.io/coverage/v1"

// Report is what `kmsctl coverage -o json` prints (docs/coverage.md).
type Report struct {
	APIVersion string         `json:"apiVersion"`
	Source     etcdstore.Info `json:"source"`
	ReadAt     time.Time      `json:"readAt"`
	Current    Current        `json:"current"`
	Totals     Counts         `json:"totals"`
	Resources  []Resource     `json:"resources"` // worst first
	Keys       []Key          `json:"keys"`      // most objects first
	Gates      []Gate         `json:"gates,omitempty"`
	Command    string         `json:"command,omitempty"` // that repeats the report
}

// Current is the key_id that counts as the current one, and how it was found.
type Current struct {
	KeyID string `json:"keyID,omitempty"`
	From  string `json:"from"` // given, newest value, none
}

// Counts are numbers of objects. Total is the sum of the others.
type Counts struct {
	Total   int64 `json:"total"`
	Current int64 `json:"current"` // by the provider that writes, under the current key
	Older   int64 `json:"older"`   // by the provider that writes, under another key
	Others  int64 `json:"others"`  // encrypted by another provider
	Plain   int64 `json:"plain"`   // not encrypted, though it should be or nobody said whether it should
	AsIs    int64 `json:"asIs"`    // not encrypted, as configured or by design
	Broken  int64 `json:"broken"`  // says that it is encrypted, and cannot be read
}

func (c *Counts) add(o Counts) {
	c.Total += o.Total
	c.Current += o.Current
	c.Older += o.Older
	c.Others += o.Others
	c.Plain += o.Plain
	c.AsIs += o.AsIs
	c.Broken += o.Broken
}

// Resource is one resource.
type Resource struct {
	Resource string `json:"resource"` // "secrets", "deployments.apps"
	// Expected is the provider that should write it; "encrypted", "identity",
	// "never encrypted", "unknown" or, of keys outside the prefix, "not kube-apiserver's".
	Expected string `json:"expected"`
	Must     bool   `json:"mustBeEncrypted"`
	Counts
	Keys   []Share  `json:"keys,omitempty"`
	Faults []Sample `json:"faults,omitempty"` // plain and broken ones

	groups []*group
}

// Share is how many objects of a resource are under a key.
type Share struct {
	Key     string `json:"key"` // Key.ID
	Objects int64  `json:"objects"`
}

// Sample names some of the objects of a resource that are not as they should be.
type Sample struct {
	Resource string   `json:"resource"`
	What     string   `json:"what"`
	Objects  int64    `json:"objects"`
	Keys     []string `json:"keys"` // some of them, as in etcd
}

// Key is one key under which something is stored.
type Key struct {
	ID        string `json:"id"` // unique in the report
	Kind      string `json:"kind"`
	Provider  string `json:"provider"` // name of the provider, or of the key for local ones
	KeyID     string `json:"keyID,omitempty"`
	KeyIDHash string `json:"keyIDHash,omitempty"` // as in kube-apiserver's metrics
	Name      string `json:"name,omitempty"`      // in the ring, if the headers prove it
	Role      string `json:"role,omitempty"`
	// KEKs and Materials are what the headers claim; more than one of them means
	// that headers contradict each other.
	KEKs       []string `json:"keks,omitempty"`
	Materials  []string `json:"materials,omitempty"`
	Generation uint64   `json:"generation,omitempty"`
	Recipients []string `json:"recipients,omitempty"`
	Current    bool     `json:"current"`
	Objects    int64    `json:"objects"`
	Seeds      int      `json:"seeds"`     // distinct wrapped DEK sources
	LocalKEKs  int      `json:"localKEKs"` // distinct
	Foreign    int64    `json:"foreign"`   // objects without a header of kms-plugin
	BadHeaders int64    `json:"badHeaders"`
	OldDEKs    int64    `json:"deks"` // objects under a DEK without a seed, as up to Kubernetes 1.28
	FirstRev   int64    `json:"firstRevision"`
	LastRev    int64    `json:"lastRevision"`

	tally *keyTally
}

func (t *tally) report(o Options) *Report {
	r := &Report{APIVersion: APIVersion, Source: t.info, ReadAt: time.Now().UTC().Truncate(time.Second), Current: t.current(o),
		Resources: []Resource{}, Keys: t.reportKeys(o)}
	for i := range r.Keys {
		r.Keys[i].Current = r.Keys[i].KeyID != "" && r.Keys[i].KeyID == r.Current.KeyID
	}
	byName := map[string]*Resource{}
	for _, rt := range t.resources {
		name := rt.key.Resource.String()
		if byName[name] == nil {
			byName[name] = &Resource{Resource: name}
		}
		t.judge(byName[name], rt, o, r.Current.KeyID)
	}
	for _, res := range byName {
		res.shares()
		r.Totals.add(res.Counts)
		r.Resources = append(r.Resources, *res)
	}
	slices.SortFunc(r.Resources, func(a, b Resource) int {
		return cmp.Or(cmp.Compare(b.rank(), a.rank()), cmp.Compare(b.Plain+b.Broken+b.Older+b.Others, a.Plain+a.Broken+a.Older+a.Others),
			cmp.Compare(b.Total, a.Total), cmp.Compare(a.Resource, b.Resource))
	})
	for _, g := range o.Gates {
		r.Gates = append(r.Gates, g.judge(r, o))
	}
	return r
}

// Holds tells whether every gate holds.
func (r *Report) Holds() bool {
	return !slices.ContainsFunc(r.Gates, func(g Gate) bool { return !g.Holds })
}

func (r *Report) key(id string) *Key {
	for i := range r.Keys {
		if r.Keys[i].ID == id {
			return &r.Keys[i]
		}
	}
	return nil
}

// rank puts what needs attention first.
func (r *Resource) rank() int {
	switch {
	case r.Broken > 0:
		return 6
	case r.Plain > 0 && r.Must:
		return 5
	case r.Others > 0:
		return 4
	case r.Older > 0:
		return 3
	case r.Must || r.Current > 0:
		return 2
	case r.Plain > 0:
		return 1
	}
	return 0
}

func (t *tally) reportKeys(o Options) []Key {
	out := []Key{}
	for _, k := range t.keys {
		key := Key{ID: k.id(), Kind: k.kind.String(), Provider: k.provider, KeyID: k.keyID, Objects: k.objects, Seeds: len(k.seeds),
			LocalKEKs: len(k.localKEKs), FirstRev: k.oldest, LastRev: k.newest, OldDEKs: k.dekType[stored.DEK], tally: k}
		if k.kind == stored.KMSv2 {
			key.KeyIDHash, key.Foreign = hash(k.keyID), k.foreign
			key.describe(k)
			if o.Names != nil {
				key.Name, key.Role = k.name(o.Names)
			}
		}
		out = append(out, key)
	}
	slices.SortFunc(out, func(a, b Key) int { return cmp.Or(cmp.Compare(b.Objects, a.Objects), cmp.Compare(a.ID, b.ID)) })
	return out
}

func (k *Key) describe(t *keyTally) {
	for h, n := range t.headers {
		if h.err != nil {
			k.BadHeaders += n
			continue
		}
		k.KEKs, k.Materials, k.Generation = append(k.KEKs, h.Identity), append(k.Materials, h.Material), max(k.Generation, h.Generation)
		for _, r := range h.Recipients {
			k.Recipients = append(k.Recipients, r.Identity)
		}
	}
	for _, s := range []*[]string{&k.KEKs, &k.Materials, &k.Recipients} {
		slices.Sort(*s)
		*s = slices.Compact(*s)
	}
}

func (k *keyTally) id() string {
	id := k.kind.String() + "/" + k.provider
	if k.keyID != "" {
		id += "/" + k.keyID
	}
	return id
}

// hash is kube-apiserver's name for a key_id in its metrics
// (k8s.io/apiserver .../envelope/metrics).
func hash(s string) string {
	h := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(h[:])
}

func (r *Resource) shares() {
	objects, faults := map[string]int64{}, map[string]*Sample{}
	for _, g := range r.groups {
		switch {
		case g.key != nil:
			objects[g.key.id()] += g.objects
		case g.kind == stored.Broken:
			for reason, n := range g.reasons {
				r.fault(faults, "broken: "+reason, n, g.samples)
			}
		case r.Plain > 0 && r.Must:
			r.fault(faults, g.kind.String(), g.objects, g.samples)
		}
	}
	for id, n := range objects {
		r.Keys = append(r.Keys, Share{id, n})
	}
	for _, f := range faults {
		r.Faults = append(r.Faults, *f)
	}
	slices.SortFunc(r.Keys, func(a, b Share) int { return cmp.Or(cmp.Compare(b.Objects, a.Objects), cmp.Compare(a.Key, b.Key)) })
	slices.SortFunc(r.Faults, func(a, b Sample) int { return cmp.Compare(a.What, b.What) })
}

func (r *Resource) fault(faults map[string]*Sample, what string, n int64, samples []string) {
	if faults[what] == nil {
		faults[what] = &Sample{Resource: r.Resource, What: what}
	}
	f := faults[what]
	f.Objects += n
	f.Keys = append(f.Keys, samples...)
	slices.Sort(f.Keys)
	f.Keys = f.Keys[:min(len(f.Keys), maxSamples)]
}
