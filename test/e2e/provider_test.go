//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/fakekms"
)

// Upstream's TestKMSv2Provider, TestKMSv2ProviderDEKSourceReuse and
// TestKMSv2FeatureFlag (kubernetes test/integration/controlplane/transformation).
func TestStoredUnderOneSeed(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a := c.apiServer("api", p)
	const n = 200
	sources := map[string]int{}
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		c.create(a, name)
		o := c.stored(name)
		if o.Provider != "kms1" || o.Type != 1 || o.KeyID != c.keyID(p) {
			t.Fatalf("%s is stored as provider %q, type %d, key_id %q", name, o.Provider, o.Type, o.KeyID)
		}
		sources[string(o.DEKSource)]++
	}
	if len(sources) != 1 {
		t.Errorf("%d objects have %d DEK sources, want 1", n, len(sources))
	}
	if got := c.decrypt(p, "s7"); !strings.Contains(got, "value of s7") {
		t.Errorf("the payload decrypts to %q", got)
	}
	if calls := c.cloud.Calls().Types["Encrypt/seed"]; calls != 0 {
		t.Errorf("%d seeds went to the cloud with wrapping local-kek", calls)
	}
	before := c.decrypts(p)
	c.restart(a)
	c.read(a, "s0")
	c.read(a, "s199")
	if got := c.decrypts(p); got == before {
		t.Error("no Decrypt reached the plugin after a restart of the API server")
	}
}

// Upstream's TestKMSv2ProviderKeyIDStaleness, by a rotation behind the same ARN.
func TestStalenessAfterRotation(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a := c.apiServer("api", p)
	s := c.create(a, "old")
	first := c.stored("old")
	s2, err := a.UpdateSecret(t.Context(), s)
	if err != nil || s2.Metadata.ResourceVersion != s.Metadata.ResourceVersion {
		t.Fatalf("a no-op update wrote, or failed: %v", err)
	}
	c.cloud.Rotate(c.arn)
	c.within(20*time.Second, "new key_id from the plugin", func(context.Context) error {
		if c.keyID(p) == first.KeyID {
			return fmt.Errorf("still %s", first.KeyID)
		}
		return nil
	})
	c.within(90*time.Second, "writes under the new key_id", func(ctx context.Context) error {
		if _, err := a.Text(ctx, "/healthz/kms-providers"); err != nil {
			return err
		}
		s2, err = a.UpdateSecret(ctx, s)
		if err != nil {
			return err
		}
		if s2.Metadata.ResourceVersion == s.Metadata.ResourceVersion {
			return fmt.Errorf("a no-op update does not write yet")
		}
		return nil
	})
	now := c.stored("old")
	if now.KeyID != c.keyID(p) || string(now.DEKSource) == string(first.DEKSource) {
		t.Errorf("rewritten under key_id %q", now.KeyID)
	}
	s3, err := a.UpdateSecret(t.Context(), s2)
	if err != nil || s3.Metadata.ResourceVersion != s2.Metadata.ResourceVersion {
		t.Errorf("a second no-op update wrote again, or failed: %v", err)
	}
	// What was written before the rotation opens on a node that knows nothing.
	fresh := c.plugin("p2", "")
	c.restart(a)
	c.read(a, "old")
	if got := c.keyID(fresh); got != c.keyID(p) {
		t.Errorf("a fresh instance reports %q, the other %q", got, c.keyID(p))
	}
}

// Upstream's TestKMSv2Healthz: of two providers one fails.
func TestHealthzOfTwoProviders(t *testing.T) {
	c := newCluster(t)
	p1, p2 := c.plugin("p1", ""), c.plugin("p2", "")
	a := c.apiServer("api", p1, p2)
	c.healthy(a, 30*time.Second)
	if err := p2.Kill(); err != nil {
		t.Fatal(err)
	}
	c.within(60*time.Second, "healthz says which provider fails", func(ctx context.Context) error {
		text, err := a.Text(ctx, "/healthz/kms-providers")
		if err == nil || !strings.Contains(text, "kms-provider-1") || strings.Contains(text, "kms-provider-0") {
			return fmt.Errorf("healthz: %q, %v", text, err)
		}
		return nil
	})
	if err := p2.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.healthy(a, 90*time.Second)
}

// Two instances see a rotation at different times, and one sees it step back.
func TestTwoInstancesTwoViews(t *testing.T) {
	c := newCluster(t)
	p1, p2 := c.plugin("p1", ""), c.plugin("p2", "")
	a1, a2 := c.apiServer("api1", p1), c.apiServer("api2", p2)
	c.create(a1, "before")
	old := c.keyID(p1)
	c.cloud.SetConsistency(func(caller string, call int, history []string) int {
		if caller == "p2" {
			return 0 // never sees the rotation
		}
		return len(history) - 1
	})
	c.cloud.Rotate(c.arn)
	c.within(20*time.Second, "p1 turns", func(context.Context) error {
		if c.keyID(p1) == old {
			return fmt.Errorf("still the old key_id")
		}
		return nil
	})
	c.within(60*time.Second, "a1 writes under the new key_id", func(ctx context.Context) error {
		if _, err := a1.Text(ctx, "/healthz/kms-providers"); err != nil {
			return err
		}
		name := fmt.Sprintf("new-%d", time.Now().UnixNano())
		c.create(a1, name)
		c.read(a2, name) // whichever key_id it has, the other must read it
		if c.stored(name).KeyID == old {
			return fmt.Errorf("still the old key_id")
		}
		return nil
	})
	if got := c.keyID(p2); got != old {
		t.Errorf("p2 reports %q without having seen the rotation", got)
	}
	turned := c.keyID(p1)
	c.cloud.SetConsistency(func(string, int, []string) int { return 0 }) // steps back for all
	start := c.cloud.Calls().Ops["Encrypt"]
	c.within(20*time.Second, "probes that see the old material", func(context.Context) error {
		if n := c.cloud.Calls().Ops["Encrypt"] - start; n < 8 {
			return fmt.Errorf("%d wraps", n)
		}
		return nil
	})
	if got := c.keyID(p1); got != turned {
		t.Errorf("p1 went back to %q", got)
	}
	c.restart(a1)
	c.restart(a2)
	c.read(a1, "before")
	c.read(a2, "before")
}

// The key of a configuration is a second one: read first, then write.
func TestNewKEKWithoutRestart(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a := c.apiServer("api", p)
	c.create(a, "old")
	second := c.cloud.CreateKey("eu-central-1", fakekms.KeyOptions{})
	home, config := c.dir+"/p1", c.dir+"/p1/config.yaml"
	entry := func(role, extra string) string {
		return fmt.Sprintf("- {name: next, role: %s, %s awskms: {keyARN: \"%s\", endpoint: \"%s\"}}\n", role, extra, second, c.cloud.URL())
	}
	c.configure(config, home, entry("read", ""))
	c.within(10*time.Second, "the key is readable", func(ctx context.Context) error {
		text, err := p.Get(ctx, "/metrics")
		if err == nil && !strings.Contains(text, `key="next"`) {
			err = fmt.Errorf("not yet")
		}
		return err
	})
	c.configure(config, home, entry("write", "activateAt: "+time.Now().Add(time.Second).UTC().Format(time.RFC3339)+","))
	c.within(20*time.Second, "the new key writes", func(context.Context) error {
		if id := c.keyID(p); !strings.HasPrefix(id, "next:") {
			return fmt.Errorf("key_id %s", id)
		}
		return nil
	})
	c.within(60*time.Second, "the API server writes under it", func(ctx context.Context) error {
		if _, err := a.Text(ctx, "/healthz/kms-providers"); err != nil {
			return err
		}
		name := fmt.Sprintf("n%d", time.Now().UnixNano())
		c.create(a, name)
		if id := c.stored(name).KeyID; !strings.HasPrefix(id, "next:") {
			return fmt.Errorf("written under %s", id)
		}
		return nil
	})
	c.restart(a)
	c.read(a, "old")
}
