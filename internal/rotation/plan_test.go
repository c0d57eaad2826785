package rotation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/drill"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/internal/status"
)

const (
	oldARN = "arn:aws:kms:eu-west-1:111122223333:key/old"
	newARN = "arn:aws:kms:eu-central-1:111122223333:key/new"
)

var oldID, newID = "prod:" + strings.Repeat("a", 32), "next:" + strings.Repeat("b", 32)

// settled is a cluster where everything is under the new key and the old one is gone
// from everywhere but the ring.
func settled() *Facts {
	at := time.Date(2026, 12, 24, 12, 0, 0, 0, time.UTC)
	f := &Facts{Provider: "ours", Target: "next", KEK: "awskms " + newARN, KeyIDHash: metrics.KeyIDHash(newID), ConfigHash: "c", Revision: 7,
		Old:    []OldKey{{Name: "prod", Role: "retired", KEK: "awskms " + oldARN}},
		Newest: &coverage.Snapshot{Source: etcdstore.Info{File: "after.db", SHA256: "x", Revision: 6, FileTime: at.Add(-time.Hour)}, Keys: []coverage.Key{{KeyID: newID, KeyIDHash: metrics.KeyIDHash(newID), Objects: 9}}},
		Fleet:  &fleet.State{At: at}}
	for i := range 3 {
		id := fmt.Sprintf("apiserver-%d", i)
		f.Fleet.Identities = append(f.Fleet.Identities, fleet.Identity{Lease: id, Host: id, Hash: metrics.KeyIDHash(id)})
		f.Fleet.Servers = append(f.Fleet.Servers, fleet.Server{Name: id, Health: "ok", IDHash: metrics.KeyIDHash(id), Seen: fleet.KeyID{Hash: f.KeyIDHash, At: at.Add(-time.Minute)}, Wrote: fleet.KeyID{Hash: f.KeyIDHash}})
		f.Fleet.Plugins = append(f.Fleet.Plugins, fleet.Plugin{Address: fmt.Sprintf("10.0.0.%d:8082", i), Plugin: &status.Plugin{Ready: true, ConfigHash: "c", KeyIDHash: f.KeyIDHash,
			Keys: []status.Key{{Name: "next", Role: "write", Active: true}, {Name: "prod", Role: "retired"}}}})
	}
	return f
}

func next(p *Plan) string {
	for _, s := range p.Steps {
		if s.State == Next {
			return s.Name + ": " + strings.Join(s.Missing, "; ")
		}
	}
	return ""
}

// The next step is the first that the facts do not show as done, and it says why.
func TestPlanNamesTheNextStep(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(f *Facts)
		want   string
		done   bool
	}{
		"all but the end of the old key": {func(*Facts) {}, "", true},
		"an API server is away":          {func(f *Facts) { f.Fleet.Servers[1].Error, f.Fleet.Servers[1].IDHash = "connection refused", "" }, "healthy, and nobody is overlooked: API server apiserver-1: connection refused", false},
		"an API server is not content":   {func(f *Facts) { f.Fleet.Servers[1].Health = "kms-provider-0: no\nmore" }, "apiserver-1 is not content with its plugin: kms-provider-0: no", false},
		"an API server is overlooked": {func(f *Facts) {
			f.Fleet.Servers = f.Fleet.Servers[:2]
		}, `API server on host "apiserver-2" lives (lease apiserver-2) and was not asked`, false},
		"an API server is down, its lease is left": {func(f *Facts) {
			f.Fleet.Identities = append(f.Fleet.Identities, fleet.Identity{Lease: "apiserver-9", Host: "cp9", Hash: "sha256:9", Stale: true})
		}, "kubectl delete lease -n kube-system apiserver-9", false},
		"a node without its API server": {func(f *Facts) { f.Fleet.Nodes = []string{"a", "b", "c", "d"} }, "4 control-plane Nodes (a, b, c, d) and 3 API servers were asked", false},
		"a plugin without its API server": {func(f *Facts) {
			f.Fleet.Plugins = append(f.Fleet.Plugins, f.Fleet.Plugins[0])
			f.Fleet.Plugins[3].Address = "10.0.0.9:8082"
		}, "1 plugins more are given than API servers", false},
		"a plugin is not given":      {func(f *Facts) { f.Fleet.Plugins = f.Fleet.Plugins[:2] }, "1 of 3 plugins are not given", false},
		"a plugin is away":           {func(f *Facts) { f.Fleet.Plugins[2].Error = "no route" }, "plugin 10.0.0.2:8082: no route", false},
		"a plugin is not ready":      {func(f *Facts) { f.Fleet.Plugins[2].Ready = false }, "plugin 10.0.0.2:8082: it is not ready", false},
		"a configuration is refused": {func(f *Facts) { f.Fleet.Plugins[2].DiskDiffers = true }, "on disk is not the one in force", false},
		"another configuration":      {func(f *Facts) { f.Fleet.Plugins[2].ConfigHash = "x" }, "it runs another configuration", false},
		"broken values":              {func(f *Facts) { f.Broken = 2 }, "2 values in etcd cannot be read", false},
		"no backup before": {func(f *Facts) { f.Newest, f.Left = nil, []string{"secrets: 3 of 9"} },
			"a backup from before: no snapshot was given", false},
		"the backup from before is old": {func(f *Facts) {
			f.Left, f.Newest.Source.FileTime = []string{"secrets: 3 of 9"}, f.Fleet.At.Add(-50*time.Hour)
		}, "a backup from before: after.db is 50 hours old, and etcd is at revision 7", false},
		"the backup from before is broken": {func(f *Facts) { f.Left, f.Newest.Broken = []string{"secrets: 3 of 9"}, 2 },
			"a backup from before: 2 values in after.db cannot be read", false},
		"the backup from before is of another cluster": {func(f *Facts) { f.Left, f.Newest.Source.Revision = []string{"secrets: 3 of 9"}, 8 },
			"a backup from before: after.db is of revision 8, and etcd of 7", false},
		"which backup is the newest is not sure": {func(f *Facts) { f.Left, f.Warnings = []string{"secrets: 3 of 9"}, []string{"a is older than b"} },
			"a backup from before: a is older than b", false},
		"no rehearsal": {func(f *Facts) { f.Left = []string{"secrets: 3 of 9"} },
			"a rehearsal of its restore: no report of a drill on the newest snapshot was given: --drills FILE", false},
		"a rehearsal that failed": {func(f *Facts) { f.Drill = &drill.Report{Seeds: 3, Opened: 2} },
			"a rehearsal of its restore: in the drill on it 2 of 3 seeds opened", true},
		"the backup from after is broken":             {func(f *Facts) { f.Newest.Broken = 2 }, "a backup from after, that needs no old key: 2 values in after.db cannot be read", true},
		"the backup from after is of another cluster": {func(f *Facts) { f.Newest.Source.Revision = 8 }, "a backup from after, that needs no old key: after.db is of revision 8", true},
		"the backup from after has not the key": {func(f *Facts) { f.Newest.Keys = nil },
			"a backup from after, that needs no old key: the newest, after.db of revision 6, holds nothing under the key", true},
		"the EncryptionConfigurations differ": {func(f *Facts) { f.Fleet.Servers[0].Config, f.Fleet.Servers[1].Config = "sha256:a", "sha256:b" },
			"the API servers run different EncryptionConfigurations", false},
		"one was told long ago": {func(f *Facts) { f.Fleet.Servers[0].Seen.At = f.Fleet.At.Add(-2 * time.Minute) }, "API server apiserver-0 was last told it at 2026-12-24 11:58:00Z, which is over 1m30s ago", false},
		"one wrote under the old key": {func(f *Facts) { f.Fleet.Servers[0].Wrote = fleet.KeyID{Hash: metrics.KeyIDHash(oldID), At: f.Fleet.At} },
			"API server apiserver-0 last wrote under key_id " + metrics.KeyIDHash(oldID) + ", at 2026-12-24 12:00:00Z", false},
		"one has written nothing yet": {func(f *Facts) { f.Fleet.Servers[0].Wrote = fleet.KeyID{} }, "", true},
		"not readable everywhere":     {func(f *Facts) { f.Fleet.Plugins[2].Keys = f.Fleet.Plugins[2].Keys[1:] }, `can read key "next", before any writes under it: plugin 10.0.0.2:8082: it does not have the key`, false},
		"one may not open the old key": {func(f *Facts) {
			f.Fleet.Plugins[1].Keys[1] = status.Key{Name: "prod", Role: "read", Closed: &status.Closed{Class: "key-state", Since: f.Fleet.At}}
		}, `healthy, and nobody is overlooked: plugin 10.0.0.1:8082: key "prod" opens nothing there since 2026-12-24T12:00:00Z (key-state)`, false},
		"a retired key is closed": {func(f *Facts) {
			f.Fleet.Plugins[1].Keys[1].Closed = &status.Closed{Class: "key-state", Since: f.Fleet.At}
		}, "", true},
		"one cannot reach the new key":  {func(f *Facts) { f.Fleet.Plugins[2].Keys[0].Unwrap = "degraded" }, `key "next" is degraded for unwrap there`, false},
		"one cannot wrap under the new": {func(f *Facts) { f.Fleet.Plugins[2].Keys[0].Wrap = "closed" }, `key "next" is closed for wrap there`, false},
		"one does not write":            {func(f *Facts) { f.Fleet.Plugins[2].Keys[0].Active, f.Fleet.Plugins[2].Keys[1].Active = false, true }, `writes under key "next": plugin 10.0.0.2:8082: it writes under key "prod"`, false},
		"another key_id":                {func(f *Facts) { f.Fleet.Plugins[2].KeyIDHash = "sha256:x" }, "it writes under another key_id of the key: sha256:x", false},
		"one was not told":              {func(f *Facts) { f.Fleet.Servers[0].Seen.Hash = metrics.KeyIDHash(oldID) }, "API server apiserver-0 was last told key_id " + metrics.KeyIDHash(oldID), false},
		"one never asked":               {func(f *Facts) { f.Fleet.Servers[0].Seen.Hash = "" }, `apiserver-0 has not asked a plugin of provider "ours"`, false},
		"something is left":             {func(f *Facts) { f.Left, f.Drill = []string{"secrets: 3 of 9"}, &drill.Report{Seeds: 3, Opened: 3} }, "written again, and proved in etcd: secrets: 3 of 9 are not under it", false},
		"the newest backup is old": {func(f *Facts) {
			f.Newest.Keys = append(f.Newest.Keys, coverage.Key{KeyID: oldID, KeyIDHash: metrics.KeyIDHash(oldID)})
		}, "needs no old key: the newest, after.db, needs key_id " + oldID, true},
		"not retired everywhere": {func(f *Facts) { f.Fleet.Plugins[1].Keys[1].Role = "read" }, `key "prod" is retired on every node: plugin 10.0.0.1:8082: it has role read there`, true},
		"an older backup needs it": {func(f *Facts) {
			day := time.Date(2026, 12, 24, 0, 0, 0, 0, time.UTC)
			f.Needed = []coverage.Needed{{Key: coverage.Key{KeyID: oldID}, LastFile: "before.db", LastTime: day.AddDate(0, 0, -30), MayGo: &day}}
		}, `no backup that is kept needs key "prod": before.db of 2026-11-24 needs it, and may go on 2026-12-24`, true},
		"a plugin is given twice": {func(f *Facts) { f.Fleet.Plugins[2].Address = f.Fleet.Plugins[0].Address }, "10.0.0.0:8082 is given twice", false},
	} {
		f := settled()
		tt.change(f)
		p := MakePlan(f, Flags{})
		if got := next(p); name == "an API server is away" && strings.Contains(got, "was not asked") || !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") || p.Complete != tt.done {
			t.Errorf("%s: next is %q, complete %t, want %q, %t", name, got, p.Complete, tt.want, tt.done)
		}
	}
}

// A plugin that has a key in its configuration may lack the right to it.
func TestPlanTellsWhoHasNotTried(t *testing.T) {
	f := settled()
	f.Fleet.Plugins[1].Keys[0].Unwrap = "unknown"
	steps := MakePlan(f, Flags{}).Steps
	i := slices.IndexFunc(steps, func(s Step) bool { return strings.HasPrefix(s.Name, "every plugin can read") })
	if i < 0 || len(steps[i].Found) != 1 || !strings.Contains(steps[i].Found[0], `10.0.0.1:8082 has not tried key "next" yet: kms-plugin doctor`) {
		t.Errorf("step %d of %+v", i, steps)
	}
}

// Every step says what to do, and one is the point of no return.
func TestPlanSaysWhatToDo(t *testing.T) {
	f := settled()
	f.Left, f.Newest, f.Fleet.Plugins[0].Keys[1].Role, f.Old[0].Objects = []string{"secrets: 3 of 9"}, nil, "read", 3
	p := MakePlan(f, Flags{Kube: " --servers=s", Etcd: " --endpoints=e", Encryption: " --encryption-config=f", Plugin: " --plugin-config=c", Plugins: " --plugins=p"})
	var b strings.Builder
	if err := p.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, s := range p.Steps {
		if s.State != Done && len(s.Do) == 0 {
			t.Errorf("step %q does not say what to do: %+v", s.Name, s)
		}
		if s.NoReturn != strings.Contains(s.Name, "deleted") {
			t.Errorf("step %q: point of no return %t", s.Name, s.NoReturn)
		}
	}
	for _, want := range []string{
		`rotation to key "next" (awskms ` + newARN + "), a new key, as of etcd revision 7; nothing was changed",
		"kmsctl rotate run --to next --servers=s --endpoints=e --encryption-config=f --plugin-config=c",
		"aws kms disable-key --region eu-west-1 --key-id " + oldARN,
		"undo:  within 30 days: aws kms cancel-key-deletion --region eu-west-1 --key-id " + oldARN,
		"POINT OF NO RETURN",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

// What nothing can show is never said to be done, with however many old keys; and what
// is the same KEK under two names is never disabled.
func TestPlanNeverClaimsTheEndOfAKey(t *testing.T) {
	f := settled()
	f.Old = append(f.Old, OldKey{Name: "older", Role: "retired", KEK: "awskms " + newARN, Same: "next"})
	p := MakePlan(f, Flags{To: " --to=next", Provider: " --provider=ours"})
	byHand := 0
	for _, s := range p.Steps {
		if s.byHand && s.State != ByHand {
			t.Errorf("step %q is %s", s.Name, s.State)
		}
		if s.byHand {
			byHand++
		}
	}
	var b strings.Builder
	if err := p.Print(&b); err != nil || byHand != 4 {
		t.Errorf("%d steps by hand, %v", byHand, err)
	}
	if strings.Contains(b.String(), "disable-key --region eu-central-1") || strings.Contains(b.String(), "schedule-key-deletion --region eu-central-1") || !strings.Contains(b.String(), `it is the same KEK as "next"`) {
		t.Errorf("the KEK in use would go:\n%s", b.String())
	}
	f.Left, f.Old[0].Objects = []string{"secrets: 1 of 2"}, 1
	b.Reset()
	if err := MakePlan(f, Flags{To: " --to=next", Provider: " --provider=ours"}).Print(&b); err != nil || !strings.Contains(b.String(), "kmsctl rotate run --to next --provider=ours") {
		t.Errorf("%s", b.String())
	}
	f.Warnings = []string{"a is older than b"}
	b.Reset()
	if err := MakePlan(f, Flags{}).Print(&b); err != nil || !strings.Contains(b.String(), "warning: a is older than b") {
		t.Errorf("%s", b.String())
	}
	f.several = true // its name does not tell the old key_id from the new
	b.Reset()
	if err := MakePlan(f, Flags{}).Print(&b); err != nil || !strings.Contains(b.String(), "kmsctl rotate run --to "+f.KeyIDHash) {
		t.Errorf("%s", b.String())
	}
}

// Behind one ARN nothing is retired: old material lives as long as its key.
func TestPlanOfNewMaterial(t *testing.T) {
	f := settled()
	f.Old, f.Material = nil, true
	p := MakePlan(f, Flags{})
	var b strings.Builder
	if err := p.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"new material behind the same key", "To rotate now: aws kms rotate-key-on-demand --region eu-central-1 --key-id " + newARN, "Deleting the key would lose everything"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "retire") || strings.Contains(b.String(), "schedule-key-deletion") {
		t.Errorf("the only key would go:\n%s", b.String())
	}
	f.Left = []string{"secrets: 3 of 9"}
	b.Reset()
	if err := MakePlan(f, Flags{}).Print(&b); err != nil || !strings.Contains(b.String(), "rotate run --to "+f.KeyIDHash) {
		t.Errorf("the key_id is not named:\n%s", b.String())
	}
}

// What is looked at gives the facts, and nothing is written.
func TestObserve(t *testing.T) {
	w := newWorld(newID, newID)
	w.etcd = map[string]string{"/registry/secrets/ns/a": under("ours", oldID), "/registry/secrets/ns/b": under("ours", newID), "/registry/example.com/widgets/w": "{}", "/registry/pods/ns/p": "k8s:enc:aescbc:v1:k:x"}
	o := w.options(t, rules)
	c, problems := config.Parse([]byte(`{apiVersion: kms-plugin.io/v1, kind: KMSPluginConfiguration, clusterID: c, socket: {path: /run/k/kms.sock}, stateDir: /run/k,
keys: [{name: next, role: write, activateAt: 2026-01-01T00:00:00Z, awskms: {keyARN: "` + newARN + `"}}, {name: prod, role: write, awskms: {keyARN: "` + oldARN + `"}}]}`))
	if problems.Fatal() != nil {
		t.Fatal(problems)
	}
	s := Scope{Servers: o.Servers, Source: w, Encryption: o.Encryption, Config: c, ConfigHash: "c", Prefix: "/registry", Target: newID}
	f, err := Observe(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if f.Target != "next" || f.KeyIDHash != metrics.KeyIDHash(newID) || f.Material || len(f.Old) != 1 || f.Old[0].Objects != 1 {
		t.Errorf("%+v", f)
	}
	if want := []string{"secrets: 1 of 2", "widgets.example.com: 1 of 1"}; !slices.Equal(f.Left, want) {
		t.Errorf("left %q, want %q", f.Left, want)
	}
	if len(f.Fleet.Identities) != 2 || f.Fleet.Servers[0].Seen.Hash != metrics.KeyIDHash(newID) {
		t.Errorf("%+v", f.Fleet)
	}
	if len(w.patched) > 0 || len(w.svm) > 0 || len(w.etcd) != 4 {
		t.Error("it changed something")
	}
	same := *c
	same.Keys = slices.Clone(c.Keys)
	same.Keys[1].AWSKMS = same.Keys[0].AWSKMS
	s.Config = &same
	if f, err := Observe(t.Context(), s); err != nil || f.Old[0].Same != "next" {
		t.Errorf("the same KEK under two names: %+v, %v", f, err)
	}
	also := *c
	also.Keys = slices.Clone(c.Keys)
	also.Keys[0].AlsoWrapWith = []string{"prod"}
	s.Config = &also
	if f, err := Observe(t.Context(), s); err != nil || len(f.Old) != 0 {
		t.Errorf("a co-recipient shall go: %+v, %v", f, err)
	}
	s.Config, s.Target = c, "gone"
	if _, err := Observe(t.Context(), s); err == nil || !strings.Contains(err.Error(), `no key "gone" in the plugins' configuration`) {
		t.Errorf("%v", err)
	}
	s.Target = "" // the one that writes last by the configuration
	if f, err = Observe(t.Context(), s); err != nil || f.Target != "next" || f.KeyIDHash != "" {
		t.Errorf("%+v, %v", f, err)
	}
	if p := MakePlan(f, Flags{}); p.Complete || !strings.Contains(fmt.Sprint(p.Steps), "which key_id that is, no plugin tells yet") {
		t.Errorf("%+v", p.Steps)
	}
}
