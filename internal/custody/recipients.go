package custody

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/health"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
)

// kekRef names a KEK as a header does.
type kekRef struct {
	identity string
	context  [16]byte
}

func refOf(e *keys.Entry) kekRef { return kekRef{e.KEK.Identity(), e.ContextDigest()} }

// refsOf are the KEKs of a header: any one of them opens its local KEK.
func refsOf(h *envelope.Header) []kekRef {
	refs := make([]kekRef, 1, 1+len(h.Recipients))
	refs[0] = kekRef{h.Identity, h.Context}
	for _, r := range h.Recipients {
		refs = append(refs, kekRef{r.Identity, r.Context})
	}
	return refs
}

// blobFor is the local KEK of a header as an entry's KEK wrapped it.
func blobFor(h *envelope.Header, e *keys.Entry) []byte {
	ref := refOf(e)
	for _, r := range h.Recipients {
		if ref == (kekRef{r.Identity, r.Context}) {
			return r.Wrapped
		}
	}
	return h.Wrapped
}

// known are those of the KEKs that are in the ring, in the order of the header.
func (v *view) known(refs []kekRef) []*keys.Entry {
	out := make([]*keys.Entry, 0, len(refs))
	for _, r := range refs {
		if e := v.ring.Find(r.identity, r.context); e != nil {
			out = append(out, e)
		}
	}
	return out
}

// ordered are the known ones as they are to be asked: in the order of the header,
// but what fails its canaries after what does not, and retired ones last of all: a
// retired key that opens something is one that is still needed.
func (v *view) ordered(refs []kekRef) []*keys.Entry {
	out := v.known(refs)
	if len(out) > 1 {
		slices.SortStableFunc(out, func(a, b *keys.Entry) int { return v.reluctance(a) - v.reluctance(b) })
	}
	return out
}

// openers are the entries that a request may ask for a local KEK: closed keys are
// left out; with nothing else it is the error of the first.
func (v *view) openers(refs []kekRef) ([]*keys.Entry, error) {
	all := v.ordered(refs)
	if len(all) == 0 {
		_, err := v.ring.Lookup(refs[0].identity, refs[0].context)
		return nil, err
	}
	out := slices.DeleteFunc(slices.Clone(all), func(e *keys.Entry) bool { return shut(v.held[e], e) != nil })
	if len(out) == 0 {
		return nil, v.shut(all)
	}
	return out, nil
}

// shut is an error if all are closed: that of the first.
func (v *view) shut(all []*keys.Entry) (first error) {
	for _, e := range all {
		err := shut(v.held[e], e)
		if err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return first
}

func (v *view) reluctance(e *keys.Entry) (n int) {
	if v.held[e].health.Unwrap.Verdict().State == health.Degraded {
		n++
	}
	if e.Role == keys.RoleRetired {
		n += 2
	}
	return n
}

// wiped says whether none of the KEKs may have its local KEKs in memory.
func (v *view) wiped(refs []kekRef) bool {
	return !slices.ContainsFunc(v.known(refs), func(e *keys.Entry) bool { return !v.held[e].health.Open().Wipe })
}

// unwrapAny asks one KEK after the other for the local KEK of a header, each with
// its share of the time. Whatever a KMS answers, another one may hold an intact
// wrap; but what was unwrapped and is not what the header says ends it, loudly.
func unwrapAny(ctx context.Context, clusterID string, by []*keys.Entry, h *envelope.Header, tell func(*keys.Entry, error)) (*opened, error) {
	if len(by) == 0 {
		return nil, fmt.Errorf("%w: %q", keys.ErrUnknownKey, h.Identity)
	}
	var failed []error
	for n, e := range by {
		part, cancel := share(ctx, len(by)-n)
		o, err := unwrapLocal(part, clusterID, e, h)
		cancel()
		if tell != nil {
			tell(e, err)
		}
		if err == nil {
			return o, nil
		}
		if ctx.Err() == context.Canceled || errors.Is(err, keys.ErrContradiction) || errors.Is(err, keys.ErrMalformed) {
			return nil, err
		}
		failed = append(failed, err)
	}
	return nil, joined(h.Identity, failed)
}

func share(ctx context.Context, among int) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok || among == 1 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/time.Duration(among))
}

// joined is the error of several KEKs: an outage as long as one of them may yet
// answer otherwise.
func joined(identity string, failed []error) error {
	if len(failed) == 1 {
		return failed[0]
	}
	e := &keys.Error{Op: keys.OpUnwrap, Key: identity, Class: keys.ClassOf(failed[0])}
	var texts []string
	for _, err := range failed {
		texts = append(texts, err.Error())
		if keys.ClassOf(err) == keys.ClassOutage {
			e.Class = keys.ClassOutage
		}
	}
	e.Err = fmt.Errorf("no recipient opens it: %s", strings.Join(texts, "; "))
	return e
}

// wrapAlso has every co-recipient wrap a local KEK, each wrap verified. One that
// fails fails all: the set of recipients is part of key_id, so an instance that
// went on without one would report another key_id than the rest of the cluster,
// and the promise that any one of them opens the data would be broken in silence.
func (k *Custodian) wrapAlso(ctx context.Context, e *keys.Entry, local keys.Secret, hd *envelope.Header) error {
	v := k.view.Load()
	var g errgroup.Group
	for i, o := range e.Recipients() {
		g.Go(func() error {
			ver, werr, uerr := k.askBoth(ctx, o.KEK, o, keys.BlobLocalKEK, "", local)
			if err := cmp.Or(werr, uerr); err != nil {
				return fmt.Errorf("%w: co-recipient %q of key %q: %w", errPartly, o.Name, e.Name, canceled(ctx, err))
			}
			hd.Recipients[i].Wrapped = ver.Blob
			if h := v.held[o]; h != nil {
				h.kept.Store(&state.Kept{Type: keys.BlobLocalKEK, Blob: ver.Blob})
			}
			return nil
		})
	}
	return g.Wait()
}

// blocked is why the write key cannot be adopted.
type blocked struct{ err error }

// stays says, once for each cause, that this instance stays where it is.
func (k *Custodian) stays(h *held, a *active, same bool, err error) {
	text, also := "the new write key does not wrap; this instance stays on the old one", errors.Is(err, errPartly)
	if also {
		text = "a co-recipient of the write key does not wrap; this instance stays on what it has"
	}
	before := h.blocked.Swap(&blocked{err})
	if before != nil && keys.ClassOf(before.err) == keys.ClassOf(err) || !also && (a == nil || same) {
		return
	}
	id := ""
	if a != nil {
		id = a.keyID
	}
	k.event(slog.LevelError, "activate", text, h, id, err)
}

// keepAll remembers how each KEK wrapped a local KEK that has just been opened, to
// probe those by it that nothing else is known of.
func (k *Custodian) keepAll(v *view, hd *envelope.Header) {
	for _, e := range v.known(refsOf(hd)) {
		k.keep(v.held[e], keys.BlobLocalKEK, blobFor(hd, e))
	}
}

// recipients are the identities of the co-recipients, sorted.
func (a *active) recipients() []string {
	var out []string
	for _, r := range a.refs[1:] {
		out = append(out, r.identity)
	}
	slices.Sort(out)
	return out
}

// opened notes the use of keys: the guard of retirement asks for it. What a healthy
// key that stays can open needs none of the others. used is the entry that was
// really asked, nil if none was.
func (k *Custodian) opened(v *view, all []*keys.Entry, used *keys.Entry) {
	if used == nil {
		i := slices.IndexFunc(all, func(e *keys.Entry) bool {
			return e.Role != keys.RoleRetired && (len(all) == 1 || v.held[e].health.Unwrap.Verdict().State == health.OK)
		})
		if i >= 0 {
			used = all[i]
		}
	}
	for _, e := range all {
		if used != nil && used != e {
			continue
		}
		v.held[e].lastOpened.Store(time.Now().Unix())
		if e.Role == keys.RoleRetired {
			k.observer.RetiredOpen(e.Name)
		}
	}
}
