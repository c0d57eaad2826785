//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/fakekms"
)

// toNewKEK is the second half of TestRotateRun: another KEK, its configuration
// reaching the nodes one after the other, one of which still runs the release before, the
// cloud throttling a third of all calls, an API server restarting in the middle, a wall
// clock that is set back, and `rotate run` killed in each of its steps. It returns the new
// key_id.
func (x *trio) toNewKEK() string {
	x.t.Helper()
	b := x.watch()
	clock := filepath.Join(x.dir, "clock")
	stepped, err := controlplane.BuildSteppedPlugin(x.t.Context(), os.Stderr, x.t.TempDir())
	if err != nil {
		x.t.Fatal(err)
	}
	before, err := controlplane.BuildPluginOf(x.t.Context(), os.Stderr, x.t.TempDir(), releaseBefore)
	if err != nil {
		x.t.Fatalf("the history of the repository is needed: %v", err)
	}
	x.p[1].Program(stepped, controlplane.ClockVariable+"="+clock)
	x.p[2].Program(before)
	x.restart(x.p[1], x.p[2])
	second := x.cloud.CreateKey("eu-central-1", fakekms.KeyOptions{})
	x.cloud.SetFault(fakekms.Fault{Kind: fakekms.Throttle, Probability: 0.33})
	defer x.cloud.ClearFaults()
	stage := func(i int, entry string) {
		home := filepath.Join(x.dir, fmt.Sprintf("p%d", i+1))
		x.configure(filepath.Join(home, "config.yaml"), home, fmt.Sprintf("- {name: next, %s, awskms: {keyARN: \"%s\", endpoint: \"%s\"}}\n", entry, second, x.cloud.URL()))
	}
	shows := func(i int, line string) {
		x.t.Helper()
		x.within(60*time.Second, line, func(ctx context.Context) error { return x.has(ctx, x.p[i].Get, line) })
	}
	for i := range x.p { // staggered: each is read by its plugin before the next is written
		stage(i, "role: read")
		shows(i, `kms_plugin_key_info{active="false",key="next",role="read"} 1`)
	}
	at := "role: write, activateAt: " + time.Now().Add(5*time.Second).UTC().Format(time.RFC3339)
	stage(0, at)
	stage(1, at)
	x.killed("converge: waiting", x.rotateArgs("--to", "next", "--wait", "5m")...) // p3 does not write under it yet
	for i := range 2 {
		shows(i, `kms_plugin_key_info{active="true",key="next",role="write"} 1`)
	}
	next := x.keyID(x.p[0])
	if err := os.WriteFile(clock, []byte(strconv.Itoa(-4*60)), 0o600); err != nil { // before activateAt again
		x.t.Fatal(err)
	}
	stage(2, at) // the last node, after the moment
	shows(2, `kms_plugin_key_info{active="true",key="next",role="write"} 1`)
	x.p[2].Program(bin.Plugin) // the upgrade, in the middle of it
	x.restart(x.p[2])
	x.killedWriting(next, "--to", "next", "--qps", "300", "--via", "patch")
	x.bounce(1) // cold: its plugin is really asked, with the clock set back
	x.killedProving("--to", "next", "--via", "patch")
	out, log := x.kmsctl(0, x.rotateArgs("--to", "next")...)
	if !strings.Contains(string(out), "everything is under key_id "+next) {
		x.t.Errorf("%s%s", out, log)
	}
	for i := range x.p {
		if got := x.keyID(x.p[i]); got != next {
			x.t.Errorf("plugin %d reports %q, want %q", i+1, got, next)
		}
	}
	if n := x.onKey(next); n < 10_000 {
		x.t.Errorf("%d objects are under the new KEK", n)
	}
	x.bounce(2)
	b.check(x.t)
	return next
}

// The release before works beside this one: what either seals the other opens, both
// report the same key_id, and each takes up the other's state directory.
func TestMixedVersions(t *testing.T) {
	before, err := controlplane.BuildPluginOf(t.Context(), os.Stderr, t.TempDir(), releaseBefore)
	if err != nil {
		t.Fatalf("the history of the repository is needed: %v", err)
	}
	c := newCluster(t)
	p1, p2 := c.plugin("p1", ""), c.plugin("p2", "")
	p2.Program(before)
	c.restart(p2)
	a1, a2 := c.apiServer("api1", p1), c.apiServer("api2", p2)
	c.create(a1, "by-new")
	c.create(a2, "by-old")
	id := c.keyID(p1)
	both := func(when string) {
		t.Helper()
		c.restart(p1, p2, a1, a2)
		for _, name := range []string{"by-new", "by-old"} {
			c.read(a1, name)
			c.read(a2, name)
		}
		if got1, got2 := c.keyID(p1), c.keyID(p2); got1 != id || got2 != id {
			t.Errorf("%s: key_ids %q and %q, want %q", when, got1, got2, id)
		}
	}
	both("side by side")
	p1.Program(before)
	p2.Program(bin.Plugin)
	c.cloud.Refuse() // what the other left must do: there is no cloud to ask
	c.restart(p1, p2)
	if got1, got2 := c.keyID(p1), c.keyID(p2); got1 != id || got2 != id {
		t.Errorf("after the exchange: key_ids %q and %q, want %q", got1, got2, id)
	}
	c.cloud.Listen()
	both("exchanged")
	c.cloud.Rotate(c.arn)
	c.within(30*time.Second, "both turn, to the same", func(context.Context) error {
		if got1, got2 := c.keyID(p1), c.keyID(p2); got1 == id || got1 != got2 {
			return fmt.Errorf("%s, %s", got1, got2)
		}
		return nil
	})
	id = c.keyID(p1)
	both("after a rotation")
}

// releaseBefore is the last commit that landed before the present work.
const releaseBefore = "4f26c54"
