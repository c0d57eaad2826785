//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/fakekms"
)

// pairOf is two API servers with a plugin each. One of them may be down on purpose:
// what is sent to it then does not count.
type pairOf struct {
	*cluster
	p    [2]*controlplane.Plugin
	a    [2]*controlplane.APIServer
	down sync.RWMutex // of the first
}

func (x *pairOf) start() {
	for i := range x.p {
		x.p[i] = x.plugin(fmt.Sprintf("p%d", i+1), "")
	}
	for i := range x.a {
		x.a[i] = x.apiServer(fmt.Sprintf("api%d", i+1), x.p[i])
	}
}

// watch writes and reads through both all the time.
func (x *pairOf) watch() *bystander {
	ctx, cancel := context.WithCancel(x.t.Context())
	b := &bystander{cancel: cancel}
	for i := range x.a {
		b.wait.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := x.errand(ctx, i, n); err != nil && ctx.Err() == nil {
					b.mu.Lock()
					b.errs = append(b.errs, err)
					b.mu.Unlock()
				}
				b.done.Add(1)
			}
		})
	}
	x.t.Cleanup(b.stop)
	return b
}

func (x *pairOf) errand(ctx context.Context, i, n int) error {
	if i == 0 {
		x.down.RLock()
		defer x.down.RUnlock()
	}
	name := fmt.Sprintf("by-%d-%d", i, n)
	if _, err := x.a[i].CreateSecret(ctx, name, "v"); err != nil {
		return err
	}
	s, err := x.a[i].GetSecret(ctx, name)
	if err == nil && string(s.Data["v"]) != "v" {
		err = fmt.Errorf("%s holds %q", name, s.Data["v"])
	}
	return err
}

// coldRestart restarts the first plugin, with what it remembers, and its API server:
// no local KEK is in memory, and no seed.
func (x *pairOf) coldRestart() {
	x.t.Helper()
	x.down.Lock()
	defer x.down.Unlock()
	x.restart(x.p[0], x.a[0])
}

// The first region of the key goes away, in both ways, and comes back: no request
// fails, an API server restarts beside a cold plugin, key_id never changes.
func TestRegionGoesAway(t *testing.T) {
	x := &pairOf{cluster: newCluster(t)}
	eu, us := x.region("eu-west-1"), x.region("us-east-1")
	x.arn = x.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{MultiRegion: true, Replicas: []string{"us-east-1"}})
	x.endpoint = eu.URL()
	x.aws = fmt.Sprintf(`, replicas: ["%s"], replicaEndpoints: {us-east-1: "%s"}`, x.cloud.ReplicaARN(x.arn, "us-east-1"), us.URL())
	x.start()
	id := x.keyID(x.p[0])
	x.create(x.a[0], "before")
	b := x.watch()
	for name, way := range map[string][2]func(){"refused": {eu.Refuse, eu.Listen}, "black hole": {eu.Blackhole, eu.Unblackhole}} {
		way[0]()
		for _, p := range x.p {
			x.within(30*time.Second, name+": calls go to the replica", func(ctx context.Context) error {
				return x.has(ctx, p.Get, `kms_plugin_region_in_use{key="prod",region="us-east-1"} 1`)
			})
		}
		x.coldRestart()
		x.read(x.a[0], "before")
		x.create(x.a[0], "in-"+strings.ReplaceAll(name, " ", "-"))
		if x.decrypts(x.p[0]) == 0 {
			t.Errorf("%s: no Decrypt reached the cold plugin", name)
		}
		x.within(20*time.Second, name+": the first probe has gone through it", func(ctx context.Context) error { // in a black hole it takes its time
			return x.has(ctx, x.p[0].Get, `kms_plugin_key_state{key="prod",op="unwrap",state="ok"} 1`)
		})
		// An instance that remembers nothing starts in the outage, with the same key_id.
		fresh := x.plugin("fresh-"+strings.ReplaceAll(name, " ", "-"), "")
		x.within(30*time.Second, "a fresh plugin is ready", func(ctx context.Context) error {
			_, err := fresh.Get(ctx, "/readyz")
			return err
		})
		if got := x.keyID(fresh); got != id {
			t.Errorf("%s: key_id of a fresh instance is %q, want %q", name, got, id)
		}
		x.decrypt(fresh, "before")
		way[1]()
		for _, p := range x.p {
			x.within(90*time.Second, name+": calls go back", func(ctx context.Context) error {
				return x.has(ctx, p.Get, `kms_plugin_region_in_use{key="prod",region="eu-west-1"} 1`)
			})
		}
		for _, p := range x.p {
			if got := x.keyID(p); got != id {
				t.Errorf("%s: key_id is %q, want %q", name, got, id)
			}
		}
	}
	b.check(t)
	if err := x.has(t.Context(), x.p[1].Get, "kms_plugin_key_id_changes_total 0"); err != nil {
		t.Errorf("key_id changed in between: %v", err)
	}
}

// A key is deleted whose co-recipient, in another account, still opens everything.
func TestKeyGoneAndCoRecipient(t *testing.T) {
	x := &pairOf{cluster: newCluster(t)}
	spare := x.cloud.CreateKey("eu-central-1", fakekms.KeyOptions{Account: "444455556666"})
	config := func(role string) string {
		return fmt.Sprintf("- {name: spare, role: %s, awskms: {keyARN: \"%s\", endpoint: \"%s\"}}\n", role, spare, x.cloud.URL())
	}
	x.entry = "  alsoWrapWith: [spare]\n"
	for i := range x.p {
		x.p[i] = x.plugin(fmt.Sprintf("p%d", i+1), config("read"))
	}
	for i := range x.a {
		x.a[i] = x.apiServer(fmt.Sprintf("api%d", i+1), x.p[i])
	}
	const n = 20
	for i := range n {
		x.create(x.a[i%2], fmt.Sprintf("s%d", i))
	}
	gate := func(code int, require string) {
		t.Helper()
		x.kmsctl(code, append(append([]string{"coverage", "--plugin-config", filepath.Join(x.dir, "p1/config.yaml"), "--encryption-config", filepath.Join(x.dir, "api1-encryption.yaml")},
			x.etcdFlags()...), "--require", require)...)
	}
	gate(0, "opened-by=spare")
	gate(0, "none-needs=prod")
	gate(3, "none-on=prod")
	gate(3, "all-on=spare")
	b := x.watch()
	x.cloud.Delete(x.arn)
	// The answer to it: the co-recipient writes. Until then its word opens all there is.
	x.entry = ""
	for _, name := range []string{"p1", "p2"} {
		x.configureKeys(filepath.Join(x.dir, name, "config.yaml"), filepath.Join(x.dir, name), "read", config("write"))
	}
	for i, p := range x.p {
		x.within(30*time.Second, "the co-recipient writes", func(context.Context) error {
			if id := x.keyID(p); !strings.HasPrefix(id, "spare:") {
				return fmt.Errorf("key_id of p%d is %s", i+1, id)
			}
			return nil
		})
	}
	// Cold, on a node that never heard of the first key.
	x.arn = spare
	alone := x.plugin("alone", "")
	x.within(30*time.Second, "a plugin with the co-recipient alone is ready", func(ctx context.Context) error {
		_, err := alone.Get(ctx, "/readyz")
		return err
	})
	for i := range n {
		if got := x.decrypt(alone, fmt.Sprintf("s%d", i)); !strings.Contains(got, "value of s") {
			t.Fatalf("s%d opens to %q", i, got)
		}
	}
	x.within(90*time.Second, "the API servers write under it", func(ctx context.Context) error {
		for i, a := range x.a {
			name := fmt.Sprintf("after-%d-%d", i, time.Now().UnixNano())
			if _, err := a.Text(ctx, "/healthz/kms-providers"); err != nil {
				return err
			}
			x.create(a, name)
			if id := x.stored(name).KeyID; !strings.HasPrefix(id, "spare:") {
				return errors.New("written under " + id)
			}
		}
		return nil
	})
	x.coldRestart()
	for i := range n {
		x.read(x.a[0], fmt.Sprintf("s%d", i))
	}
	b.check(t)
}

func (c *cluster) region(name string) *fakekms.Region {
	c.t.Helper()
	r, err := c.cloud.Region(name)
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}
