package revocation_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/revocation"
	"kms-plugin.io/internal/status"
)

var (
	taken  = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	closed = taken.Add(2 * time.Minute)
)

func at(d time.Duration) *time.Time { t := taken.Add(d); return &t }

// gone is a plugin whose key is closed, with a co-recipient that is too.
func gone() fleet.Plugin {
	return fleet.Plugin{Address: "10.0.0.1:8082", Plugin: &status.Plugin{Bounds: map[string]float64{"key-state": 150},
		Keys: []status.Key{
			{Name: "prod", Unwrap: "closed", Recipients: []string{"spare"}, Closed: &status.Closed{Class: "key-state", Since: closed}, LastOpened: at(119 * time.Second)},
			{Name: "spare", Unwrap: "closed", Closed: &status.Closed{Class: "authorization", Since: closed.Add(-time.Second)}},
		}}}
}

func restarted() fleet.Server {
	return fleet.Server{Name: "10.0.0.1:6443", IDHash: "sha256:a", Started: closed.Add(time.Minute)}
}

func TestJudge(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(p *fleet.Plugin, s *fleet.Server, state *fleet.State, o *revocation.Options)
		found  string // "" is proven
		remedy string
	}{
		"all gone": {nil, "", ""},
		"a key nobody has": {func(_ *fleet.Plugin, _ *fleet.Server, _ *fleet.State, o *revocation.Options) {
			o.Keys = append(o.Keys, "other")
		}, "no key of that name", "is the name right?"},
		"a plugin is silent": {func(p *fleet.Plugin, _ *fleet.Server, _ *fleet.State, _ *revocation.Options) {
			*p = fleet.Plugin{Address: "x", Error: "refused"}
		}, "cannot be asked: refused", "look on its node"},
		"it still opens": {func(p *fleet.Plugin, _ *fleet.Server, _ *fleet.State, _ *revocation.Options) {
			p.Keys[0].Closed, p.Keys[0].Unwrap = nil, "ok"
		}, "it opens: unwrap is ok; it closes within: key-state 2m30s", "take the key away"},
		"its timer runs": {func(p *fleet.Plugin, _ *fleet.Server, _ *fleet.State, _ *revocation.Options) {
			p.Keys[0].Closed, p.Keys[0].Unwrap = nil, "degraded"
		}, "its timer runs", "wait"},
		"opened after it shut": {func(p *fleet.Plugin, _ *fleet.Server, _ *fleet.State, _ *revocation.Options) {
			p.Keys[0].LastOpened = at(2*time.Minute + 2*time.Second)
		}, "opened a seed at 2026-11-25T12:02:02Z", "defect"},
		"opened after its bound": {func(p *fleet.Plugin, s *fleet.Server, _ *fleet.State, _ *revocation.Options) {
			p.Keys[0].Closed.Since, p.Keys[0].LastOpened, s.Started = taken.Add(10*time.Minute), at(9*time.Minute), taken.Add(time.Hour)
		}, "later than the bound of 150 s", "defect"},
		"co-recipient not taken": {func(p *fleet.Plugin, _ *fleet.Server, _ *fleet.State, o *revocation.Options) {
			p.Keys[1].Closed, o.Keys = nil, o.Keys[:1]
		}, `co-recipient "spare" opens`, "name it here"},
		"API server not restarted":  {func(_ *fleet.Plugin, s *fleet.Server, _ *fleet.State, _ *revocation.Options) { s.Started = closed }, "it may hold seeds", "restart it"},
		"API server is silent":      {func(_ *fleet.Plugin, s *fleet.Server, _ *fleet.State, _ *revocation.Options) { s.Error = "timeout" }, "cannot be asked: timeout", "on its node"},
		"API server of unknown age": {func(_ *fleet.Plugin, s *fleet.Server, _ *fleet.State, _ *revocation.Options) { s.Started = time.Time{} }, "does not tell", "on its node"},
		"API server overlooked": {func(_ *fleet.Plugin, _ *fleet.Server, x *fleet.State, _ *revocation.Options) {
			x.Identities = append(x.Identities, fleet.Identity{Host: "cp-2", Hash: "sha256:b", Lease: "l"})
		}, "lives (lease l)", "--servers"},
		"not looked at": {func(_ *fleet.Plugin, s *fleet.Server, _ *fleet.State, o *revocation.Options) {
			s.Error, o.NoServers = "x", true
		}, "", ""},
		"nobody asked": {func(_ *fleet.Plugin, _ *fleet.Server, x *fleet.State, o *revocation.Options) {
			x.Plugins, x.Servers, o.NoServers = nil, nil, true
		}, "nobody was asked", ""},
		"the socket serves": {func(_ *fleet.Plugin, _ *fleet.Server, _ *fleet.State, o *revocation.Options) {
			o.Sockets = []status.Report{{Socket: "/s", Healthy: true, KeyID: "k:1"}}
		}, "Status is ok, under key_id k:1", "not closed"},
		"the socket is closed": {func(_ *fleet.Plugin, _ *fleet.Server, _ *fleet.State, o *revocation.Options) {
			o.Sockets = []status.Report{{Socket: "/s", Error: `FailedPrecondition: key "prod" is closed (key-state)`}}
		}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, s, o := gone(), restarted(), revocation.Options{Keys: []string{"prod", "spare"}, Since: taken}
			state := &fleet.State{At: taken.Add(time.Hour), Identities: []fleet.Identity{{Hash: "sha256:a"}}}
			state.Plugins, state.Servers = []fleet.Plugin{p}, []fleet.Server{s}
			if tc.change != nil {
				tc.change(&state.Plugins[0], &state.Servers[0], state, &o)
			}
			r := revocation.Judge(state, o)
			var b bytes.Buffer
			if err := r.Print(&b); err != nil {
				t.Fatal(err)
			}
			if r.Proven != (tc.found == "") || !strings.Contains(b.String(), tc.found) || !strings.Contains(b.String(), tc.remedy) {
				t.Errorf("proven %t, want %t with %q and %q:\n%s", r.Proven, tc.found == "", tc.found, tc.remedy, &b)
			}
			if r.Proven && !o.NoServers && !strings.Contains(b.String(), "the last plugin closed 2m0s after it was taken away") {
				t.Errorf("the verdict does not tell how long it took:\n%s", &b)
			}
		})
	}
}
