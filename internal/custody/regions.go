package custody

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"kms-plugin.io/internal/health"
	"kms-plugin.io/internal/state"
	"kms-plugin.io/pkg/keys"
)

// errPartly is a probe that some regions answered well and some did not.
var errPartly = errors.New("not every region answers")

// regionLog is what the regions of one key answered last.
type regionLog struct {
	mu     sync.Mutex
	places map[string]*regionSeen
	inUse  string
}

type regionSeen struct {
	known map[keys.Op]bool // has answered well since the start
	last  map[keys.Op]error
	asked map[keys.Op]bool
}

// RegionReport is one region of a key.
type RegionReport struct {
	Name         string
	InUse        bool   // the next call goes there first
	Wrap, Unwrap string // class of the last answer to a canary, or "unknown"
}

// regionAnswer is what one region said to the canaries of one probe.
type regionAnswer struct {
	said     map[keys.Op]error // what was asked
	verified keys.Verified
}

// probeRegions asks every region by itself, at the same time: one that is silent
// must not delay the others. What they say together is the health of the key.
func (k *Custodian) probeRegions(ctx context.Context, h *held, r keys.Regional) error {
	wraps, kept, anchor := k.writes(h), h.kept.Load(), k.anchor()
	if !wraps && kept == nil {
		return nil
	}
	all := r.Regions()
	answers := make([]regionAnswer, len(all))
	var wg sync.WaitGroup
	for i, one := range all {
		wg.Go(func() { answers[i] = k.askRegion(ctx, h, one, wraps, anchor, kept) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if k.forgetKept(h, kept, answers) {
		return nil
	}
	k.logRegions(h, r, all, answers)
	quorum := h.entry.Load().RegionQuorum
	h.health.Wrap.ObserveRegions(h.regions.answers(keys.OpWrap, all, answers), quorum)
	h.health.Unwrap.ObserveRegions(h.regions.answers(keys.OpUnwrap, all, answers), quorum)
	k.noteRegions(h, anchor, answers)
	err := together(answers)
	if err == nil || errors.Is(err, errPartly) {
		k.touch()
	}
	return err
}

// askRegion makes the canaries of one region.
func (k *Custodian) askRegion(ctx context.Context, h *held, r keys.Region, wraps bool, anchor string, kept *state.Kept) regionAnswer {
	a := regionAnswer{said: map[keys.Op]error{}}
	named := func(err error) error {
		if err != nil {
			err = fmt.Errorf("region %s: %w", r.Name, canceled(ctx, err))
		}
		return err
	}
	e := h.entry.Load()
	if wraps {
		canary := make(keys.Secret, 32)
		if _, err := rand.Read(canary); err != nil {
			return a
		}
		v, werr, uerr := k.askBoth(ctx, r.KEK, e, keys.BlobProbe, anchor, canary)
		a.said[keys.OpWrap], a.verified = named(werr), v
		if werr == nil {
			a.said[keys.OpUnwrap] = named(uerr)
			return a
		}
	}
	if kept != nil {
		a.said[keys.OpUnwrap] = named(k.askKept(ctx, r.KEK, e, kept))
	}
	return a
}

// forgetKept drops a kept blob that opens nowhere and is damaged somewhere: the
// blob is at fault.
func (k *Custodian) forgetKept(h *held, kept *state.Kept, answers []regionAnswer) bool {
	var damaged error
	for _, a := range answers {
		if err, asked := a.said[keys.OpWrap]; asked && err == nil {
			return false // a fresh blob was asked, not the kept one
		}
		err, asked := a.said[keys.OpUnwrap]
		switch {
		case asked && err == nil:
			return false
		case keys.ClassOf(err) == keys.ClassData || errors.Is(err, keys.ErrMalformed):
			damaged = err
		}
	}
	if damaged == nil {
		return false
	}
	h.kept.CompareAndSwap(kept, nil)
	k.event(slog.LevelWarn, "probe", "a kept blob does not open any more; it is forgotten", h, "", damaged)
	return true
}

// noteRegions keeps a fresh blob and counts the sight of a material: only one on
// which all regions that wrapped agree.
func (k *Custodian) noteRegions(h *held, anchor string, answers []regionAnswer) {
	materials := map[string]bool{}
	for _, a := range answers {
		if a.verified.Blob == nil {
			continue
		}
		if len(materials) == 0 {
			h.keep(a.verified.Blob, anchor)
		}
		materials[a.verified.Material] = true
	}
	if len(materials) > 1 {
		h.candidate = candidate{}
		return
	}
	for m := range materials {
		k.noteMaterial(h, m)
	}
}

// together is the error of a probe, for the pause before the next one.
func together(answers []regionAnswer) error {
	var bad error
	good := false
	for _, a := range answers {
		for _, err := range a.said {
			good = good || err == nil
			if err != nil && (bad == nil || keys.ClassOf(err) > keys.ClassOf(bad)) {
				bad = err
			}
		}
	}
	if good && bad != nil {
		return errPartly
	}
	return bad
}

// answers are those of one operation, as health takes them.
func (l *regionLog) answers(op keys.Op, all []keys.Region, answers []regionAnswer) []health.Answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []health.Answer
	for i, a := range answers {
		if err, asked := a.said[op]; asked {
			if errors.Is(err, keys.ErrMalformed) {
				err = &keys.Error{Class: keys.ClassData, Op: op, Region: all[i].Name, Err: err}
			}
			out = append(out, health.Answer{Err: err, Known: l.places[all[i].Name].known[op]})
		}
	}
	return out
}

// logRegions remembers and tells what changed.
func (k *Custodian) logRegions(h *held, r keys.Regional, all []keys.Region, answers []regionAnswer) {
	l := &h.regions
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.places == nil {
		l.places = map[string]*regionSeen{}
	}
	for i, a := range answers {
		p := l.places[all[i].Name]
		if p == nil {
			p = &regionSeen{known: map[keys.Op]bool{}, last: map[keys.Op]error{}, asked: map[keys.Op]bool{}}
			l.places[all[i].Name] = p
		}
		for _, op := range []keys.Op{keys.OpWrap, keys.OpUnwrap} {
			err, asked := a.said[op]
			if !asked {
				continue
			}
			k.regionChanged(h, all[i].Name, op, p.last[op], err)
			p.last[op], p.asked[op] = err, true
			p.known[op] = p.known[op] || err == nil
		}
	}
	if now := r.InUse(); now != l.inUse {
		if now != cmp.Or(l.inUse, all[0].Name) {
			k.observer.Event(Event{Kind: "region", Level: slog.LevelWarn, Text: "calls go to another region first", Key: h.entry.Load().Name, Region: now})
		}
		l.inUse = now
	}
}

func (k *Custodian) regionChanged(h *held, region string, op keys.Op, before, now error) {
	was, is := keys.ClassOf(before), keys.ClassOf(now)
	if was == is {
		return
	}
	e := Event{Kind: "region", Level: slog.LevelWarn, Text: "a region does not serve the key: " + string(op), Key: h.entry.Load().Name, Region: region, Err: now}
	switch {
	case is == keys.ClassNone:
		e.Level, e.Text = slog.LevelInfo, "a region serves the key again: "+string(op)
	case is > keys.ClassOutage:
		e.Level, e.Text = slog.LevelError, "a region denies the key: "+string(op)
	}
	k.observer.Event(e)
}

// report is what is known of each region, in order of preference.
func (l *regionLog) report(r keys.Regional) []RegionReport {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []RegionReport
	inUse := r.InUse()
	for _, one := range r.Regions() {
		p := l.places[one.Name]
		out = append(out, RegionReport{Name: one.Name, InUse: one.Name == inUse, Wrap: p.state(keys.OpWrap), Unwrap: p.state(keys.OpUnwrap)})
	}
	return out
}

func (p *regionSeen) state(op keys.Op) string {
	if p == nil || !p.asked[op] {
		return "unknown"
	}
	return keys.ClassOf(p.last[op]).String()
}
