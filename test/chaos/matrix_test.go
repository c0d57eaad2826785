//go:build e2e

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/lack"
)

// cell is one fault in one situation.
type cell struct {
	t         *testing.T
	s         *stage
	fault     fault
	situation situation

	state      []byte // the state file before
	restarted  bool   // the first plugin
	starting   chan error
	readyAfter time.Duration // its API server, after its start
	inFault    bool          // it was ready before the fault had ended

	said  *said
	count *tally
	well  time.Duration // from the end of the fault until all was well
}

// short are the cells that run with every change.
var short = []string{
	"steady/KMS is a black hole", "steady/audit disk full", "plugin/KMS refuses connections", "plugin/state file gone",
	"apiserver/KMS is a black hole", "apiserver/5xx, but done", "both/100 % throttled", "both/state file damaged",
	"keychange/KMS refuses connections", "keychange/5xx, but done", "both/first region refuses",
}

func wanted(situation, fault string) bool {
	return os.Getenv("CHAOS") == "all" || slices.Contains(short, situation+"/"+fault)
}

// TestMatrix is the outage matrix: what clients of the API servers saw, what the plugin
// said and when, and how long it took until all was well.
func TestMatrix(t *testing.T) {
	r := &report{}
	for i, group := range []string{"one region", "two regions"} {
		t.Run(group, func(t *testing.T) {
			var s *stage
			var b *bystander
			for _, sit := range situations {
				for _, f := range faults {
					if max(1, f.regions) != i+1 || !wanted(sit.name, f.name) {
						continue
					}
					t.Run(sit.name+"/"+f.name, func(c *testing.T) {
						if f.mounts && !apart() {
							lack.Skip(c, "needs root")
						}
						if s == nil {
							s = newStage(t, 2, i+1, "")
							b = s.watch()
						}
						x := &cell{t: c, s: s, fault: f, situation: sit}
						r.cells = append(r.cells, x)
						x.run(b)
						x.judge()
					})
				}
			}
		})
	}
	if path := os.Getenv("CHAOS_REPORT"); path != "" {
		if err := r.write(path); err != nil {
			t.Error(err)
		}
	}
}

// The shortest and the longest time that a fault lasts.
const (
	shortest = 3 * time.Second
	longest  = 8 * time.Second
)

func (x *cell) run(b *bystander) {
	x.wellAgain(b, 2*time.Minute)           // a region is used again only after half a minute
	x.s.down[0].Store(false)                // a cell that failed may have left it so
	x.state, _ = os.ReadFile(x.statePath()) // none is restored as none
	if x.situation.prepare != nil {
		x.situation.prepare(x)
	}
	b.next()
	x.said = x.s.listen(x.t.Context())
	x.said.want = x.fault.says
	healed := false
	heal := func() {
		if !healed {
			healed = true
			x.fault.heal(x)
			x.s.cloud.SetConsistency(nil)
		}
	}
	defer heal() // or every cell after this one fails too
	x.fault.inject(x)
	x.said.begun = time.Now()
	x.situation.act(x)
	x.watchFault()
	if x.starting != nil && !x.hopeless() {
		x.inFault = x.waitAPIServer(60 * time.Second)
		x.oneMore(b)
	}
	x.said.hear(x.t.Context())
	if x.hopeless() && len(x.starting) > 0 {
		x.t.Error("the API server is ready though its plugin can open nothing for it")
	}
	heal()
	healedAt := time.Now()
	if x.starting != nil && !x.inFault {
		x.waitAPIServer(2 * time.Minute)
	}
	x.wellAgain(b, 2*time.Minute) // a region is used again only after half a minute
	x.well = time.Since(healedAt)
	x.count = b.next()
}

// hopeless: in this fault no API server that starts can serve, for its plugin has started
// in it too.
func (x *cell) hopeless() bool { return x.restarted && (x.fault.cold || x.fault.deaf) }

// watchFault lasts until the plugin has told all that it is to tell, within bounds.
func (x *cell) watchFault() {
	least := shortest
	if x.restarted && x.fault.cold {
		least *= 2 // a client connects again after a second, and an Encrypt and a Decrypt fail after 2.4 s
	}
	for begun := time.Now(); time.Since(begun) < max(longest, x.fault.patience); time.Sleep(50 * time.Millisecond) {
		told := x.said.hear(x.t.Context())
		if (told || x.fault.says == "") && time.Since(begun) >= least {
			return
		}
	}
}

func (x *cell) waitAPIServer(d time.Duration) bool {
	x.t.Helper()
	select {
	case err := <-x.starting:
		if err != nil {
			x.t.Errorf("the API server did not come up: %v", err)
		}
		return err == nil
	case <-time.After(d):
		x.t.Errorf("the API server is not ready after %s", d)
		return false
	}
}

// oneMore lets the bystander do something with an API server that has just come.
func (x *cell) oneMore(b *bystander) {
	x.t.Helper()
	before := b.errands[0].Load()
	within(x.t, 30*time.Second, "an errand through the API server that has restarted", func(context.Context) error {
		if b.errands[0].Load() < before+3 {
			return errors.New("none yet")
		}
		return nil
	})
}

// wellAgain waits until nothing tells of a fault any more.
func (x *cell) wellAgain(b *bystander, d time.Duration) {
	x.t.Helper()
	var before []int64
	for i := range b.errands {
		before = append(before, b.errands[i].Load())
	}
	within(x.t, d, "all is well", func(ctx context.Context) error {
		ids := map[string]bool{}
		for i, p := range x.s.p {
			st, err := x.s.status(ctx, i)
			if err != nil {
				return err
			}
			ids[st.KeyId] = true
			if _, err := p.Get(ctx, "/readyz"); err != nil {
				return err
			}
			if err := quiet(ctx, p.Get); err != nil {
				return fmt.Errorf("p%d: %w", i+1, err)
			}
			if b.errands[i].Load() == before[i] {
				return errors.New("no errand has ended well")
			}
		}
		if len(ids) > 1 {
			return fmt.Errorf("key_ids differ: %v", ids)
		}
		return nil
	})
}

// quiet demands that metrics tell of no fault.
func quiet(ctx context.Context, get func(context.Context, string) (string, error)) error {
	text, err := get(ctx, "/metrics")
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		state := strings.HasPrefix(line, "kms_plugin_key_state{") || strings.HasPrefix(line, "kms_plugin_region_state{")
		good := strings.Contains(line, `state="ok"`) || strings.HasSuffix(line, " 0")
		if state && !good || line == `kms_plugin_region_in_use{key="prod",region="us-east-1"} 1` || line == "kms_plugin_ready 0" {
			return errors.New(line)
		}
	}
	return nil
}

// judge holds a cell against the promise.
func (x *cell) judge() {
	x.t.Helper()
	c := x.count
	x.t.Logf("%s; metrics %v after %s; log %q after %s; API server ready after %s; well after %s", c, x.said.metrics, x.said.metricAfter, x.said.log, x.said.logAfter, x.readyAfter, x.well)
	switch {
	case x.restarted && x.fault.deaf: // who had no connection before gets none
		c.blame(x.t, "Status", "/readyz", "Encrypt or Decrypt")
	case x.restarted && x.fault.cold:
		c.blame(x.t, "Encrypt or Decrypt")
		if len(c.callErrs) == 0 {
			x.t.Error("a cold plugin opened all it was asked for: was there a fault?")
		}
	default:
		c.blame(x.t)
	}
	if x.fault.says != "" && !x.said.told(x.fault.says) {
		x.t.Errorf("the plugin did not say %q", x.fault.says)
	}
}
