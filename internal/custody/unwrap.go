package custody

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/time/rate"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/localkek"
)

const (
	// maxKnown bounds the local KEKs in memory (about 2 KiB each). A cluster has
	// one for each instance and key_id.
	maxKnown = 2048
	// remoteLocal and remoteDirect bound the calls in flight. With the probes
	// they stay below the 128 connections a provider may open.
	remoteLocal  = 48
	remoteDirect = 72
	// Unknown local KEKs: what a cold start after many key_ids needs at once,
	// and what a flood of made-up ones may cost per second after that.
	unknownBurst     = 1000
	unknownPerSecond = 100
)

// opened is a local KEK in memory with what was confirmed when it came.
type opened struct {
	key     *localkek.Key
	refs    []kekRef    // KEK and co-recipients
	by      *keys.Entry // that unwrapped it, or wrapped it here
	keyID   string      // digest part of the key_id
	detail  string      // first 16 hex digits of its id
	request string      // id of the call that unwrapped it
}

// unwrapper holds the local KEKs in memory, by digest of the whole header.
type unwrapper struct {
	gate    *gate
	locals  *flights[*opened]
	seeds   *flights[keys.Secret]
	unknown *rate.Limiter

	mu    sync.RWMutex
	known map[digest]*opened
}

func newUnwrapper() *unwrapper {
	unknown := rate.NewLimiter(unknownPerSecond, unknownBurst)
	g := newGate(func() bool { return unknown.Tokens() < 1 })
	u := &unwrapper{
		gate: g, locals: newFlights[*opened](g, remoteLocal), seeds: newFlights[keys.Secret](g, remoteDirect),
		unknown: unknown, known: map[digest]*opened{},
	}
	u.seeds.patient = true // a cold start has a seed for each object
	return u
}

func (u *unwrapper) get(d digest) *opened {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.known[d]
}

func (u *unwrapper) put(d digest, o *opened) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.known) >= maxKnown {
		for victim := range u.known { // any: an unwrap brings it back
			delete(u.known, victim)
			break
		}
	}
	u.known[d] = o
}

// dropWhere forgets local KEKs.
func (u *unwrapper) dropWhere(f func(*opened) bool) (n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for d, o := range u.known {
		if f(o) {
			delete(u.known, d)
			n++
		}
	}
	return n
}

// ids are the local KEKs in memory, first 16 hex digits each.
func (u *unwrapper) ids() []string {
	u.mu.RLock()
	defer u.mu.RUnlock()
	ids := make([]string, 0, len(u.known))
	for _, o := range u.known {
		ids = append(ids, o.detail)
	}
	return ids
}

// local finds the local KEK of a header in memory or has it unwrapped.
func (u *unwrapper) local(ctx context.Context, clusterID string, by []*keys.Entry, h *envelope.Header, d digest) (*opened, string, error) {
	return u.locals.do(ctx, d, func(ctx context.Context) (*opened, error) {
		if o := u.get(d); o != nil {
			return o, nil // it came while this request was on its way here
		}
		if err := u.unknown.Wait(ctx); err != nil {
			return nil, fmt.Errorf("%w: more unknown local KEKs than %d a second", keys.ErrBusy, unknownPerSecond)
		}
		o, err := unwrapAny(ctx, clusterID, by, h, nil)
		if err != nil {
			return nil, err
		}
		u.put(d, o)
		return o, nil
	})
}

// unwrapLocal asks one KEK for the local KEK of a header and believes only what its
// KMS confirms: type and commitment, and of the header's own KEK the material.
func unwrapLocal(ctx context.Context, clusterID string, e *keys.Entry, h *envelope.Header) (*opened, error) {
	u, err := e.KEK.Unwrap(ctx, blobFor(h, e), keys.NewContext(clusterID, keys.BlobLocalKEK, e.Context))
	if err != nil {
		return nil, fmt.Errorf("unwrap local KEK with key %q: %w", e.Name, err)
	}
	defer u.Plaintext.Destroy()
	secret, err := envelope.ParsePlain(keys.BlobLocalKEK, u.Plaintext)
	if err != nil {
		return nil, err
	}
	k, err := localkek.Open(secret, h.LocalKEK, localkek.Suite(h.Suite))
	if errors.Is(err, localkek.ErrSuite) {
		return nil, fmt.Errorf("%w: %w", keys.ErrMalformed, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: key %q: %w", keys.ErrContradiction, e.Name, err)
	}
	if e.KEK.Identity() == h.Identity && u.Material != h.Material {
		return nil, fmt.Errorf("%w: key %q: the header names another material than the one that unwrapped it", keys.ErrContradiction, e.Name)
	}
	return newOpened(k, h, e, clusterID, u.RequestID), nil
}

func newOpened(k *localkek.Key, h *envelope.Header, by *keys.Entry, clusterID, request string) *opened {
	return &opened{key: k, refs: refsOf(h), by: by, keyID: h.Facts(clusterID).Digest(), detail: shortID(k.ID()), request: request}
}

func shortID(id [localkek.IDSize]byte) string { return hex.EncodeToString(id[:8]) }
