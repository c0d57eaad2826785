//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/rotation"
	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/fakekms"
)

// liars is a cluster in a rotation from key prod to key next where somebody lies: `rotate
// run`, `retire` and the gates of coverage must not believe it.
type liars struct {
	*cluster
	p      [2]*controlplane.Plugin
	a      [2]*controlplane.APIServer
	before string // a snapshot from before
	old    []byte // what Secret s3 was in etcd then
	next   string // entry of key next as it writes

	through string // "" or what kmsctl reaches etcd by
}

func (x *liars) etcdFlags() []string {
	flags := x.cluster.etcdFlags()
	if x.through != "" {
		flags[slices.Index(flags, x.etcd.Clients())] = x.through
	}
	return flags
}

// In each case the three refuse, name what is wrong, and hold again when it is put right.
func TestLiesAreCaught(t *testing.T) {
	x := newLiars(t)
	x.neverSawTheKey()
	x.leftOneResourceOut()
	x.wroteInTheLastSecond()
	x.snapshotNeedsTheOldKey()
}

func newLiars(t *testing.T) *liars {
	t.Helper()
	x := &liars{cluster: newCluster(t)}
	for i := range x.p {
		x.p[i] = x.plugin(fmt.Sprintf("p%d", i+1), "")
	}
	for i := range x.a {
		x.a[i] = x.apiServer(fmt.Sprintf("api%d", i+1), x.p[i])
	}
	x.serveWidgets(x.a[:]...)
	for i := range 10 {
		x.create(x.a[i%2], fmt.Sprintf("s%d", i))
		w := objects["widgets.example.com"]
		if err := x.a[i%2].Create(t.Context(), w.path, fmt.Sprintf(w.body, fmt.Sprintf("w%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	x.before = x.snapshot("before.db")
	var err error
	if x.old, err = x.etcd.Get(t.Context(), etcdKey("s3")); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *liars) snapshot(name string) string {
	x.t.Helper()
	file := filepath.Join(x.dir, name)
	if out, err := exec.CommandContext(x.t.Context(), bin.Etcdctl, "--endpoints", x.etcd.URL, "snapshot", "save", file).CombinedOutput(); err != nil {
		x.t.Fatalf("%v: %s", err, out)
	}
	return file
}

func (x *liars) config(i int) string {
	return filepath.Join(x.dir, fmt.Sprintf("p%d/config.yaml", i+1))
}

// shows waits until a plugin has a key in that state.
func (x *liars) shows(i int, key, role string, active bool) {
	x.t.Helper()
	line := fmt.Sprintf(`kms_plugin_key_info{active="%t",key=%q,role=%q} 1`, active, key, role)
	x.within(30*time.Second, line, func(ctx context.Context) error { return x.has(ctx, x.p[i].Get, line) })
}

func (x *liars) args(verb ...string) []string {
	return append(append(verb, x.kubeFlags(x.a[:]...)...), x.etcdFlags()...)
}

func (x *liars) rotate(code int, more ...string) string {
	x.t.Helper()
	out, log := x.kmsctl(code, append(x.args("rotate", "run", "-n", "default", "--to", "next", "--encryption-config", x.encryptions(2), "--plugin-config", x.config(0)), more...)...)
	return string(out) + log
}

func (x *liars) retire(code int, more ...string) string {
	x.t.Helper()
	out, log := x.kmsctl(code, append(x.args("retire", "prod", "-n", "default", "--plugin-config", x.config(0), "--plugins", x.p[0].HTTP()+","+x.p[1].HTTP()), more...)...)
	return string(out) + log
}

// gate asks coverage; its source is etcd, or --snapshot FILE.
func (x *liars) gate(code int, require string, source ...string) string {
	x.t.Helper()
	if source == nil {
		source = x.etcdFlags()
	}
	out, log := x.kmsctl(code, append([]string{"coverage", "--encryption-config", x.encryptions(2), "--plugin-config", x.config(0), "--require", require}, source...)...)
	return string(out) + log
}

func (x *liars) expect(lie, text string, wants ...string) {
	x.t.Helper()
	for _, w := range wants {
		if !strings.Contains(text, w) {
			x.t.Errorf("%s: no %q in\n%s", lie, w, text)
		}
	}
}

// neverSawTheKey: one API server's plugin has not turned, and all look healthy.
func (x *liars) neverSawTheKey() {
	const lie = "one API server never saw the new key"
	second := x.cloud.CreateKey("eu-central-1", fakekms.KeyOptions{})
	at := time.Now().UTC().Format(time.RFC3339)
	entry := func(role string) string {
		return fmt.Sprintf("- {name: next, %s, awskms: {keyARN: \"%s\", endpoint: \"%s\"}}\n", role, second, x.cloud.URL())
	}
	stage := func(i int, entry string) { x.configure(x.config(i), filepath.Dir(x.config(i)), entry) }
	x.next = entry("role: write, activateAt: " + at)
	for i := range x.p {
		stage(i, entry("role: read"))
		x.shows(i, "next", "read", false)
	}
	stage(0, x.next)
	x.shows(0, "next", "write", true)
	laggard := strings.TrimPrefix(x.a[1].URL, "https://")
	x.expect(lie, x.rotate(1, "--wait", "30s"), laggard+` writes under key_id "prod:`, "nothing was changed yet")
	x.expect(lie, x.retire(3, "--no-snapshots"), laggard+" still writes under it: prod:", `plugin `+x.p[1].HTTP()+`: the key has role "write" there`)
	x.expect(lie, x.gate(3, "all-on=next"), "secrets")
	x.expect(lie, x.gate(3, "none-on=prod"), "secrets")
	stage(1, x.next)
	x.shows(1, "next", "write", true)
}

const migrationsAPI = "/apis/storagemigration.k8s.io/v1/storageversionmigrations"

// leftOneResourceOut: a kube-controller-manager that says of every migration that it
// succeeded and writes nothing, and a policy that keeps widgets as they are.
func (x *liars) leftOneResourceOut() {
	const lie = "a migration reports success and left a resource out"
	const binding = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
	for _, o := range []struct{ path, body string }{
		{"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies", `{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicy","metadata":{"name":"frozen"},"spec":{"failurePolicy":"Fail",
			"matchConstraints":{"resourceRules":[{"apiGroups":["example.com"],"apiVersions":["v1"],"operations":["UPDATE"],"resources":["widgets"]}]},"validations":[{"expression":"false","message":"widgets are frozen"}]}}`},
		{binding, `{"apiVersion":"admissionregistration.k8s.io/v1","kind":"ValidatingAdmissionPolicyBinding","metadata":{"name":"frozen"},"spec":{"policyName":"frozen","validationActions":["Deny"]}}`},
	} {
		if err := x.a[0].Create(x.t.Context(), o.path, o.body); err != nil {
			x.t.Fatal(err)
		}
	}
	x.frozen(true)
	stop := x.lyingManager()
	text := x.rotate(1, "--via", "migration")
	x.expect(lie, text, "StorageVersionMigration of secrets: Succeeded: all done", "StorageVersionMigration of widgets.example.com: Succeeded: all done", "prove: widgets.example.com: 10 older", "widgets are frozen")
	if n := x.under("/registry/secrets/default/s", "next:"); n != 10 {
		x.t.Errorf("%s: the Secrets that it left out too were not written by patches: %d", lie, n)
	}
	stop()
	x.expect(lie, x.gate(3, "all-on=next"), "widgets.example.com")
	x.expect(lie, x.retire(3, "--no-snapshots"), "FAIL  etcd: widgets.example.com: 10 under it")
	if _, err := x.a[0].Do(x.t.Context(), http.MethodDelete, binding+"/frozen", ""); err != nil {
		x.t.Fatal(err)
	}
	x.frozen(false)
	x.expect(lie, x.rotate(0, "--via", "patch"), "everything is under key_id next:")
	x.gate(0, "all-on=next")
}

// under counts in etcd.
func (x *liars) under(prefix, keyID string) (n int) {
	x.t.Helper()
	kvs, err := x.etcd.List(x.t.Context(), prefix)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, kv := range kvs {
		if strings.Contains(string(kv.Value), keyID) {
			n++
		}
	}
	return n
}

// wroteInTheLastSecond: after everything was written again, a value under the old key comes
// back, as from an API server that stood still in the middle of a write.
func (x *liars) wroteInTheLastSecond() {
	const lie = "a Secret was written in the last second before the scan"
	put := func(ctx context.Context) error {
		_, err := x.etcd.Put(ctx, etcdKey("s3"), x.old)
		return err
	}
	if err := put(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
	x.expect(lie, x.gate(3, "all-on=next"), "secrets", "/registry/secrets/default/s3")
	x.expect(lie, x.retire(3, "--no-snapshots"), "FAIL  etcd: secrets: 1 under it")
	// As long as it goes on there is no proof: it comes back before each question to etcd,
	// so after every patch and before every scan.
	through, stop := before(x.t, x.etcd.URL, put)
	x.through = through
	text := x.rotate(1, "--via", "patch")
	x.through = ""
	stop()
	x.expect(lie, text, "prove: secrets: 1 older")
	x.expect(lie, x.rotate(0, "--via", "patch"), "everything is under key_id next:")
	x.gate(0, "none-on=prod")
	x.read(x.a[1], "s3")
}

// snapshotNeedsTheOldKey: all is well in etcd, and a backup is kept.
func (x *liars) snapshotNeedsTheOldKey() {
	const lie = "a snapshot still needs the old key"
	after := x.snapshot("after.db")
	rev, err := x.etcd.Put(x.t.Context(), "/other", []byte("x"))
	if err := errors.Join(err, x.etcd.Compact(x.t.Context(), rev)); err != nil {
		x.t.Fatal(err)
	}
	for i := range x.p {
		x.retirePlugin(i)
	}
	x.expect(lie, x.retire(3, "--snapshots", x.before+","+after), "FAIL  backups: "+x.before+" needs it: ", "ok    etcd: ", "ok    history: ")
	x.expect(lie, x.gate(3, "none-on=prod", "--snapshot", x.before), "secrets")
	x.gate(0, "none-on=prod", "--snapshot", after)
	if s := x.retention(x.before + "," + after); s.State == rotation.Done || !strings.Contains(strings.Join(s.Missing, "\n"), x.before+" of ") {
		x.t.Errorf("%s: rotate plan does not name it: %+v", lie, s)
	}
	if s := x.retention(after); s.State != rotation.Done {
		x.t.Errorf("%s: and when it is gone: %+v", lie, s)
	}
	x.expect(lie, x.retire(0, "--snapshots", after), `key "prod" may be disabled`)
}

// retention is the step of a plan that is about backups that need key prod. The exit code
// says nothing of it: it is 3 because each plugin of this test has a file of its own.
func (x *liars) retention(snapshots string) rotation.Step {
	x.t.Helper()
	out, _ := x.kmsctl(3, x.args("rotate", "plan", "-o", "json", "--to", "next", "--encryption-config", x.encryptions(2), "--plugin-config", x.config(0),
		"--plugins", x.p[0].HTTP()+","+x.p[1].HTTP(), "--snapshots", snapshots)...)
	var p struct{ Steps []rotation.Step }
	if err := json.Unmarshal(out, &p); err != nil {
		x.t.Fatal(err)
	}
	i := slices.IndexFunc(p.Steps, func(s rotation.Step) bool { return s.Name == `no backup that is kept needs key "prod"` })
	if i < 0 {
		x.t.Fatalf("the plan has no step about backups that need the key: %s", out)
	}
	return p.Steps[i]
}

// retirePlugin gives key prod the role retired and starts all anew: a plugin counts what it
// opened since its start.
func (x *liars) retirePlugin(i int) {
	x.t.Helper()
	x.configureKeys(x.config(i), filepath.Dir(x.config(i)), "retired", x.next)
	x.shows(i, "prod", "retired", false)
	x.restart(x.p[i], x.a[i])
}
