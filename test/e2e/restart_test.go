//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestRestarts(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a := c.apiServer("api", p)
	c.create(a, "s")
	id := c.keyID(p)

	c.restart(p)
	c.read(a, "s")
	if got := c.keyID(p); got != id {
		t.Errorf("key_id after a restart of the plugin is %q, was %q", got, id)
	}
	c.restart(a)
	c.read(a, "s")
	c.restart(p, a)
	c.read(a, "s")
	if c.decrypts(p) == 0 {
		t.Error("no Decrypt reached the plugin")
	}
	c.restart(c.etcd)
	c.within(30*time.Second, "read after a restart of etcd", func(ctx context.Context) error {
		_, err := a.GetSecret(ctx, "s")
		return err
	})
	c.create(a, "after")

	// Losing every file of ours but the configuration costs no data.
	if err := a.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"state.json", "last-good.yaml", "audit.log"} {
		if err := os.Remove(c.dir + "/p1/" + f); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.read(a, "s")
	c.read(a, "after")
	if got := c.keyID(p); got != id {
		t.Errorf("key_id without state is %q, was %q", got, id)
	}
}

// SIGKILL in the middle of writes loses nothing that was acknowledged.
func TestKilledInTheMiddleOfWrites(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a := c.apiServer("api", p)
	var written []string
	for round := range 3 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 60 {
				name := fmt.Sprintf("r%d-%d", round, i)
				if _, err := a.CreateSecret(t.Context(), name, "value of "+name); err != nil {
					t.Errorf("write %s: %v", name, err)
					return
				}
				written = append(written, name)
			}
		}()
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := p.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-done
	}
	c.restart(p, a)
	for _, name := range written {
		c.read(a, name)
	}
}

// An API server that restarts while the cloud is away comes up and serves.
func TestAPIServerRestartInAnOutage(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a := c.apiServer("api", p)
	c.create(a, "s")
	for name, away := range map[string][2]func(){
		"refused":    {c.cloud.Refuse, c.cloud.Listen},
		"black hole": {c.cloud.Blackhole, c.cloud.Unblackhole},
	} {
		away[0]()
		c.within(20*time.Second, "degraded in the metrics", func(ctx context.Context) error {
			return c.has(ctx, p.Get, `kms_plugin_key_state{key="prod",op="wrap",state="degraded"} 1`)
		})
		before := c.decrypts(p)
		c.restart(a)
		c.read(a, "s")
		c.create(a, "in-"+strings.ReplaceAll(name, " ", "-"))
		if c.decrypts(p) == before {
			t.Errorf("%s: no Decrypt reached the plugin", name)
		}
		away[1]()
		c.within(10*time.Second, "ok in the metrics", func(ctx context.Context) error {
			return c.has(ctx, p.Get, `kms_plugin_key_state{key="prod",op="wrap",state="ok"} 1`)
		})
	}
}

func (c *cluster) has(ctx context.Context, get func(context.Context, string) (string, error), line string) error {
	text, err := get(ctx, "/metrics")
	if err == nil && !strings.Contains(text, line) {
		err = fmt.Errorf("no %s", line)
	}
	return err
}

// A plugin that restarts while the cloud is away does not disturb a running
// API server: it reads and writes on.
func TestPluginRestartInAnOutage(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a := c.apiServer("api", p)
	c.create(a, "s")
	id := c.keyID(p)
	c.cloud.Refuse()
	c.restart(p)
	if got := c.keyID(p); got != id {
		t.Errorf("key_id = %q, want the remembered %q", got, id)
	}
	if _, err := p.Get(t.Context(), "/readyz"); err == nil {
		t.Error("/readyz is ok without a local KEK in memory")
	}
	// Beyond the three minutes that the API server writes without a good Status.
	for until := time.Now().Add(200 * time.Second); time.Now().Before(until); {
		name := fmt.Sprintf("w%d", time.Now().UnixNano())
		c.create(a, name)
		c.read(a, name)
		c.healthy(a, 40*time.Second)
		c.within(5*time.Second, "a moment", tick())
	}
	c.cloud.Listen()
	c.within(10*time.Second, "ready again", func(ctx context.Context) error {
		_, err := p.Get(ctx, "/readyz")
		return err
	})
	c.restart(a)
	c.read(a, "s")
}

// tick is content at its second call.
func tick() func(context.Context) error {
	n := 0
	return func(context.Context) error {
		if n++; n < 10 {
			return fmt.Errorf("wait")
		}
		return nil
	}
}

// A key that its KMS disabled closes, and opens again without a restart.
func TestKeyDisabledAndBack(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "health: {keyState: 2s, wipeAfter: 1s}\n")
	a := c.apiServer("api", p)
	c.create(a, "s")
	c.cloud.SetState(c.arn, "Disabled")
	c.within(30*time.Second, "Status is an error", func(ctx context.Context) error {
		if _, err := p.Status(ctx); err == nil || !strings.Contains(err.Error(), "key-state") {
			return fmt.Errorf("Status: %v", err)
		}
		return nil
	})
	c.within(60*time.Second, "the API server notices", func(ctx context.Context) error {
		if text, err := a.Text(ctx, "/healthz/kms-providers"); err == nil || !strings.Contains(text, "FailedPrecondition") {
			return fmt.Errorf("healthz: %q", text)
		}
		return nil
	})
	c.cloud.SetState(c.arn, "Enabled")
	c.healthy(a, 60*time.Second)
	c.restart(a)
	c.read(a, "s")
	c.create(a, "again")
}
