package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/custody"
	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/pkg/plugin"
)

// observer carries what custody and the service tell to log, metrics and audit.
type observer struct {
	*metrics.Metrics
	log     *slog.Logger
	audit   *audit.Log
	changed chan struct{} // capacity 1
}

var (
	_ custody.Observer = (*observer)(nil)
	_ plugin.Auditor   = (*observer)(nil)
)

// Event implements custody.Observer: one log line and one audit record.
func (o *observer) Event(e custody.Event) {
	attrs := []slog.Attr{slog.String("event", e.Kind)}
	for _, a := range []struct{ name, value string }{{"key", e.Key}, {"keyID", e.KeyID}, {"region", e.Region}} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.name, a.value))
		}
	}
	r := audit.Record{Op: e.Kind, KeyID: e.KeyID, KEK: e.Key, Outcome: "ok"}
	if e.Region != "" {
		r.KEK += " in " + e.Region
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("error", e.Err.Error()))
		_, r.Outcome = plugin.Outcome(e.Err)
		r.Error = e.Err.Error()
	}
	o.log.LogAttrs(context.Background(), e.Level, e.Text, attrs...)
	_ = o.audit.Record(r) // counted by its OnError; an event has nobody to refuse
	o.Changed()
}

// Changed implements custody.Observer.
func (o *observer) Changed() {
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

// Audit implements plugin.Auditor.
func (o *observer) Audit(c plugin.Call) error {
	_, outcome := plugin.Outcome(c.Err)
	r := audit.Record{Op: c.Op, UID: c.UID, KeyID: c.KeyID, KEK: c.Detail.KEK, LocalKEK: c.Detail.LocalKEK,
		RequestID: c.Detail.RequestID, Outcome: outcome}
	if c.Err != nil {
		r.Error = c.Err.Error()
		o.log.Warn("call failed", "op", c.Op, "uid", c.UID, "outcome", outcome, "error", r.Error)
	}
	return o.audit.Record(r)
}

// publish copies custody's report and the state of credentials into the metrics whenever it changed, and
// every few seconds, since timers run out by themselves.
func (o *observer) publish(ctx context.Context, report func() custody.Report, credentials func() []metrics.Credential) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		o.show(report())
		o.SetCredentials(credentials())
		select {
		case <-ctx.Done():
			return
		case <-o.changed:
		case <-tick.C:
		}
	}
}

func (o *observer) show(r custody.Report) {
	o.SetKeyID(r.KeyID)
	o.SetLocalKEKs(r.LocalKEKs)
	o.SetReady(r.Ready == nil)
	o.SetStateFailing(r.State != nil)
	ks := make([]metrics.Key, 0, len(r.Keys))
	for _, k := range r.Keys {
		m := metrics.Key{Name: k.Name, Role: string(k.Role), Active: k.Active, Wrap: string(k.Wrap.State), Unwrap: string(k.Unwrap.State),
			Recipients: k.Recipients, LastOpened: k.LastOpened}
		if u := k.Unwrap; u.OpenShut {
			m.Closed = metrics.Closed{Class: u.Class.String(), Since: time.Now().Add(-u.ClosedFor)}
		}
		if k.Unwrap.HasGood {
			m.LastGood = time.Now().Add(-k.Unwrap.SinceOK)
		}
		for _, r := range k.Regions {
			m.Regions = append(m.Regions, metrics.Region(r))
		}
		ks = append(ks, m)
	}
	o.SetKeys(ks)
}

// bounds exports the revocation bound of each class.
func (o *observer) bounds(t custody.Tuning) {
	for class, d := range t.Bounds() {
		o.SetBound(class.String(), d)
	}
}

// sampler lets one line of a kind through each second: a LIST of failing
// objects must not fill the disk that the cluster lives on.
type sampler struct {
	slog.Handler
	state *samplerState
}

type samplerState struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func newSampler(h slog.Handler) *sampler {
	return &sampler{h, &samplerState{last: map[string]time.Time{}}}
}

// Handle implements slog.Handler.
func (s *sampler) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "call failed" {
		s.state.mu.Lock()
		again := r.Time.Sub(s.state.last[r.Message]) < time.Second
		if !again {
			s.state.last[r.Message] = r.Time
		}
		s.state.mu.Unlock()
		if again {
			return nil
		}
	}
	return s.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (s *sampler) WithAttrs(a []slog.Attr) slog.Handler {
	return &sampler{s.Handler.WithAttrs(a), s.state}
}

// WithGroup implements slog.Handler.
func (s *sampler) WithGroup(name string) slog.Handler {
	return &sampler{s.Handler.WithGroup(name), s.state}
}
