package retirement

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"kms-plugin.io/internal/canary"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/status"
)

type source struct {
	value  string
	err    error
	noHash bool
}

func (s source) Scan(_ context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	visit, err := begin(etcdstore.Info{Kind: "x", File: "f.db", Verified: !s.noHash, Revision: 7, Compacted: 3})
	if err != nil {
		return err
	}
	return errors.Join(visit(etcdstore.KV{Key: []byte("/registry/secrets/ns/a"), Value: []byte(s.value), ModRevision: 1}), s.err)
}

func under(keyID string) string {
	f := func(num protowire.Number, v string) string {
		return string(protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte(v)))
	}
	return "k8s:enc:kms:v2:ours:" + f(1, "d") + f(2, keyID) + f(3, "s")
}

const digest = ":00000000000000000000000000000000"

func plugin(role string, opens int) *status.Plugin {
	return &status.Plugin{Ready: true, Keys: []status.Key{{Name: "old", Role: role}}, RetiredOpens: map[string]int{"old": opens}}
}

func good() Options {
	fine := source{value: under("new" + digest)}
	return Options{Key: "old", Role: "retired", Target: "awskms arn:aws:kms:eu-west-1:111122223333:key/x", Live: fine, History: fine, Snapshots: []etcdstore.Source{fine},
		APIServers: 2, Plugins: []string{"a:1", "b:2"},
		Canary: func(context.Context) *canary.Report {
			return &canary.Report{Writes: []canary.Write{{Server: "s", Written: true, KeyID: "new" + digest}}}
		},
		Unasked: func(context.Context) fleet.Unasked { return fleet.Unasked{} },
		Scrape:  func(context.Context, string) (*status.Plugin, error) { return plugin("retired", 0), nil }}
}

func TestMayGo(t *testing.T) {
	e, err := Gather(t.Context(), good())
	if err != nil || !e.MayGo || len(e.Checks) != 6 {
		t.Fatalf("%+v, %v", e, err)
	}
	var b strings.Builder
	if err := e.Print(&b); err != nil || !strings.Contains(b.String(), "aws kms disable-key --region eu-west-1 --key-id arn:aws:kms:eu-west-1:111122223333:key/x\n") || strings.Contains(b.String(), "FAIL") {
		t.Errorf("%s%v", b.String(), err)
	}
}

func TestMayNotGo(t *testing.T) {
	bad := source{value: under("old" + digest)}
	for name, tt := range map[string]struct {
		change func(o *Options)
		want   string
	}{
		"still read":  {func(o *Options) { o.Role = "read" }, "has role read"},
		"stored":      {func(o *Options) { o.Live = bad }, "FAIL  etcd: secrets: 1 perhaps under it"},
		"in history":  {func(o *Options) { o.History = bad }, "FAIL  history: secrets"},
		"in a backup": {func(o *Options) { o.Snapshots = append(o.Snapshots, bad) }, "FAIL  backups: f.db needs it"},
		"a backup without a hash": {func(o *Options) {
			o.Snapshots = append([]etcdstore.Source{source{value: under("new" + digest), noHash: true}}, o.Snapshots...)
		}, "FAIL  backups: f.db of 0001-01-01: no value is under it; it has no hash to verify, so damage in it cannot be told (--allow-unverified"},
		"no backup given": {func(o *Options) { o.Snapshots = nil }, "no snapshot was given"},
		"a broken value":  {func(o *Options) { o.Live = source{value: "k8s:enc:x"} }, "1 broken"},
		"an API server writes": {func(o *Options) {
			o.Canary = func(context.Context) *canary.Report {
				return &canary.Report{Writes: []canary.Write{{Server: "s", KeyID: "old" + digest}}}
			}
		}, "still writes under it"},
		"the canary fails": {func(o *Options) {
			o.Canary = func(context.Context) *canary.Report {
				return &canary.Report{Problems: []string{"s does not write"}, Writes: []canary.Write{{}}}
			}
		}, "s does not write"},
		"an API server is not asked": {func(o *Options) {
			o.Unasked = func(context.Context) fleet.Unasked {
				return fleet.Unasked{Problems: []fleet.Problem{{Text: "one on host cp3 is gone or down", Remedy: "bring it up"}}}
			}
			o.AllowUnknown = true // which is about others
		}, "FAIL  API servers: one on host cp3 is gone or down: bring it up"},
		"nobody can tell": {func(o *Options) {
			o.Unasked = func(context.Context) fleet.Unasked { return fleet.Unasked{Unknown: "no leases"} }
		}, "FAIL  API servers: whether an API server was overlooked cannot be told: no leases (--allow-unknown-apiservers"},
		"one plugin too many":   {func(o *Options) { o.Plugins = append(o.Plugins, "c:3") }, "3 plugins are given for 2"},
		"no API server":         {func(o *Options) { o.Canary = func(context.Context) *canary.Report { return &canary.Report{} } }, "may NOT go"},
		"a plugin is not asked": {func(o *Options) { o.Plugins = o.Plugins[:1] }, "1 plugins are given for 2"},
		"a plugin is away": {func(o *Options) {
			o.Scrape = func(context.Context, string) (*status.Plugin, error) { return nil, errors.New("refused") }
		}, "plugin a:1: refused"},
		"a plugin writes": {func(o *Options) {
			o.Scrape = func(context.Context, string) (*status.Plugin, error) { return plugin("write", 0), nil }
		}, `role "write" there`},
		"a plugin has no such": {func(o *Options) {
			o.Scrape = func(context.Context, string) (*status.Plugin, error) { return &status.Plugin{Ready: true}, nil }
		}, `role "none" there`},
		"a plugin opened": {func(o *Options) {
			o.Scrape = func(context.Context, string) (*status.Plugin, error) { return plugin("retired", 4), nil }
		}, "opened 4 seeds"},
		"a plugin is not ready": {func(o *Options) {
			o.Scrape = func(context.Context, string) (*status.Plugin, error) {
				p := plugin("retired", 0)
				p.Ready = false
				return p, nil
			}
		}, "not ready"},
		"a plugin did not load": {func(o *Options) {
			o.Scrape = func(context.Context, string) (*status.Plugin, error) {
				p := plugin("retired", 0)
				p.DiskDiffers = true
				return p, nil
			}
		}, "not the one in force"},
	} {
		o := good()
		tt.change(&o)
		e, err := Gather(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := e.Print(&b); err != nil {
			t.Fatal(err)
		}
		if e.MayGo || !strings.Contains(b.String(), tt.want) || strings.Contains(b.String(), "disable-key") {
			t.Errorf("%s: want %q in\n%s", name, tt.want, b.String())
		}
	}
	o := good()
	o.Unasked, o.AllowUnknown = func(context.Context) fleet.Unasked { return fleet.Unasked{Unknown: "no leases"} }, true
	if e, err := Gather(t.Context(), o); err != nil || !e.MayGo {
		t.Errorf("nobody can tell, and the operator does: %+v, %v", e, err)
	}
	o = good()
	o.Snapshots, o.AllowUnverified = []etcdstore.Source{source{value: under("new" + digest), noHash: true}}, true
	e, err := Gather(t.Context(), o)
	if err != nil || !e.MayGo || !strings.Contains(strings.Join(e.Checks[5].Found, ""), "it has no hash to verify") {
		t.Errorf("a backup without a hash, and the operator answers for it: %+v, %v", e, err)
	}
	o.Snapshots = append([]etcdstore.Source{bad}, o.Snapshots...)
	if e, err := Gather(t.Context(), o); err != nil || e.MayGo {
		t.Errorf("the operator answers for one file, and another needs the key: %+v, %v", e, err)
	}
	o = good()
	o.Snapshots, o.NoSnapshots = nil, true
	if e, err := Gather(t.Context(), o); err != nil || !e.MayGo {
		t.Errorf("no snapshots, and said so: %+v, %v", e, err)
	}
}

func TestNoEvidenceWithoutAnEnd(t *testing.T) {
	broken := source{err: errors.New("went away")}
	for _, change := range []func(o *Options){func(o *Options) { o.Live = broken }, func(o *Options) { o.History = broken }, func(o *Options) { o.Snapshots = []etcdstore.Source{broken} }} {
		o := good()
		change(&o)
		if e, err := Gather(t.Context(), o); !errors.Is(err, broken.err) || e != nil {
			t.Errorf("%+v, %v", e, err)
		}
	}
}
