//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/drill"
	"kms-plugin.io/test/fakekms"
)

// Three backups over a rotation: which needs which key, and whether a plugin can
// open them.
func TestBackups(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a := c.apiServer("api", p)
	dir := filepath.Join(c.dir, "backups")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	save := func(name string, age time.Duration) {
		t.Helper()
		file := filepath.Join(dir, name)
		if out, err := exec.CommandContext(t.Context(), bin.Etcdctl, "--endpoints", c.etcd.URL, "snapshot", "save", file).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(file, at, at); err != nil {
			t.Fatal(err)
		}
	}
	c.create(a, "old")
	first := c.keyID(p)
	save("1.db", 48*time.Hour)
	c.restart(a) // a second seed under the same local KEK
	c.create(a, "second-seed")
	c.cloud.Rotate(c.arn)
	c.within(20*time.Second, "new key_id from the plugin", func(context.Context) error {
		if c.keyID(p) == first {
			return errors.New("still the old one")
		}
		return nil
	})
	c.restart(a)
	c.create(a, "new")
	save("2.db", 24*time.Hour)
	for _, name := range []string{"old", "second-seed"} {
		s := c.read(a, name)
		if _, err := a.UpdateSecret(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	save("3.db", 0)

	out, _ := c.kmsctl(0, "inventory", dir, "--keep", "30d", "--plugin-config", filepath.Join(c.dir, "p1/config.yaml"), "-o", "json")
	var inv coverage.Inventory
	if err := json.Unmarshal(out, &inv); err != nil {
		t.Fatal(err)
	}
	last := map[string]string{}
	for _, n := range inv.Keys {
		last[n.KeyID] = fmt.Sprintf("%s %s newest=%t mayGo=%t", n.Name, filepath.Base(n.LastFile), n.Newest, n.MayGo != nil)
	}
	if got := last[first]; got != "prod 2.db newest=false mayGo=true" {
		t.Errorf("the old key is %q", got)
	}
	if got := last[c.keyID(p)]; got != "prod 3.db newest=true mayGo=false" {
		t.Errorf("the new key is %q", got)
	}

	for file, seeds := range map[string]int{"1.db": 1, "2.db": 3, "3.db": 1} {
		before := c.cloud.Calls().Types["Decrypt/local-kek"]
		out, _ := c.kmsctl(0, "drill", "--snapshot", filepath.Join(dir, file), "--socket", p.Socket, "-o", "json")
		var r drill.Report
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatal(err)
		}
		if r.Seeds != seeds || r.Opened != seeds {
			t.Errorf("%s: %d of %d seeds open, want %d", file, r.Opened, r.Seeds, seeds)
		}
		if n := c.cloud.Calls().Types["Decrypt/local-kek"] - before; n > 10 {
			t.Errorf("%s cost %d remote calls", file, n)
		}
		if strings.Contains(string(out), "value of") {
			t.Error("the drill shows contents")
		}
	}
	// A plugin that has another KEK opens nothing, and says why.
	c.arn = c.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{})
	stranger := c.plugin("p2", "")
	text, _ := c.kmsctl(3, "drill", "--snapshot", filepath.Join(dir, "2.db"), "--socket", stranger.Socket)
	if !strings.Contains(string(text), "0 of 3 seeds open") || !strings.Contains(string(text), "shut: ") {
		t.Errorf("%s", text)
	}
	if _, stderr := c.kmsctl(1, "drill", "--snapshot", filepath.Join(dir, "2.db"), "--socket", c.dir+"/none"); !strings.Contains(stderr, "there is no socket") {
		t.Errorf("%s", stderr)
	}
	if _, stderr := c.kmsctl(1, "inventory", dir, filepath.Join(c.dir, "p1/config.yaml")); !strings.Contains(stderr, "config.yaml") || !strings.Contains(stderr, "hint: ") {
		t.Errorf("%s", stderr)
	}
}
