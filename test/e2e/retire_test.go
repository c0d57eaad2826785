//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/retirement"
	"kms-plugin.io/test/fakekms"
)

// From one KEK to another, up to the command that disables the old one, which is
// printed only when nothing depends on it any more: not etcd, not a watch that
// resumes, not a backup, not a plugin.
func TestRetire(t *testing.T) {
	c := newCluster(t)
	p := c.plugin("p1", "")
	a := c.apiServer("api", p)
	for i := range 20 {
		c.create(a, fmt.Sprintf("s%d", i))
	}
	save := func(name string) string {
		t.Helper()
		file := filepath.Join(c.dir, name)
		if out, err := exec.CommandContext(t.Context(), bin.Etcdctl, "--endpoints", c.etcd.URL, "snapshot", "save", file).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return file
	}
	before := save("before.db")
	home, config := c.dir+"/p1", c.dir+"/p1/config.yaml"
	second := c.cloud.CreateKey("eu-central-1", fakekms.KeyOptions{})
	entry := func(role, extra string) string {
		return fmt.Sprintf("- {name: next, role: %s, %s awskms: {keyARN: \"%s\", endpoint: \"%s\"}}\n", role, extra, second, c.cloud.URL())
	}
	shows := func(what string) {
		t.Helper()
		c.within(30*time.Second, what, func(ctx context.Context) error {
			text, err := p.Get(ctx, "/metrics")
			if err == nil && !strings.Contains(text, what) {
				err = fmt.Errorf("not yet")
			}
			return err
		})
	}
	c.configure(config, home, entry("read", ""))
	shows(`kms_plugin_key_info{active="false",key="next",role="read"} 1`)
	active := "activateAt: " + time.Now().Add(time.Second).UTC().Format(time.RFC3339) + ","
	c.configure(config, home, entry("write", active))
	shows(`kms_plugin_key_info{active="true",key="next",role="write"} 1`)

	retire := func(code int, more ...string) string {
		t.Helper()
		args := []string{"retire", "prod", "-n", "default", "--plugin-config", config, "--plugins", p.HTTP()}
		args = append(append(append(args, c.kubeFlags(a)...), c.etcdFlags()...), more...)
		out, _ := c.kmsctl(code, args...)
		return string(out)
	}
	expect := func(text string, wants ...string) {
		t.Helper()
		for _, w := range wants {
			if !strings.Contains(text, w) {
				t.Errorf("no %q in\n%s", w, text)
			}
		}
	}
	expect(retire(3, "--snapshots", before), "FAIL  role: ", "FAIL  etcd: secrets: ", "FAIL  backups: ", "may NOT go")

	args := append(append([]string{"rotate", "run", "-n", "default", "--to", "next", "--encryption-config", filepath.Join(c.dir, "api-encryption.yaml"), "--plugin-config", config},
		c.kubeFlags(a)...), c.etcdFlags()...)
	out, _ := c.kmsctl(0, args...)
	expect(string(out), "everything is under key_id next:")
	c.configureKeys(config, home, "retired", entry("write", active))
	shows(`kms_plugin_key_info{active="false",key="prod",role="retired"} 1`)
	after := save("after.db")
	expect(retire(3, "--snapshots", after), "ok    role: ", "ok    etcd: none of ", "ok    backups: ", "FAIL  history: secrets: ")
	rev, err := c.etcd.Put(t.Context(), "/other", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.etcd.Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	evidence := filepath.Join(c.dir, "evidence.json")
	expect(retire(0, "--snapshots", after, "--evidence", evidence), "ok    history: ", "aws kms disable-key --region eu-west-1 --key-id "+c.arn)
	c.proves(evidence, true, after)
	expect(retire(3, "--snapshots", before, "--evidence", evidence), "may NOT go")
	c.proves(evidence, false, before)
	expect(retire(3, "--snapshots", before+","+after), "FAIL  backups: "+before+" needs it")
	// An API server that starts anew opens nothing under it either.
	c.restart(a)
	for i := range 20 {
		c.read(a, fmt.Sprintf("s%d", i))
	}
	expect(retire(0, "--no-snapshots"), "may be disabled")
}

// proves holds the file of --evidence against what it must say of key prod: it may go, or
// only the backup stands against it; each check is there, and what it found.
func (c *cluster) proves(file string, mayGo bool, snapshot string) {
	c.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		c.t.Fatal(err)
	}
	var e retirement.Evidence
	if err := json.Unmarshal(data, &e); err != nil {
		c.t.Fatal(err)
	}
	if e.APIVersion != retirement.APIVersion || e.Key != "prod" || !strings.Contains(e.Target, c.arn) || time.Since(e.At) > 5*time.Minute || e.MayGo != mayGo {
		c.t.Errorf("evidence that the key may go (%t): %s", mayGo, data)
	}
	var names []string
	for _, x := range e.Checks {
		names = append(names, x.Name)
		if x.OK != (mayGo || x.Name != "backups") || len(x.Found) == 0 || (x.Remedy == "") != x.OK {
			c.t.Errorf("evidence that the key may go (%t): check %+v", mayGo, x)
		}
	}
	if want := []string{"role", "plugins", "API servers", "etcd", "history", "backups"}; !slices.Equal(names, want) {
		c.t.Fatalf("the evidence has the checks %q, want %q", names, want)
	}
	if found := strings.Join(e.Checks[5].Found, "\n"); !strings.Contains(found, snapshot) || strings.Contains(found, "no hash") {
		c.t.Errorf("what it found in %s: %s", snapshot, found)
	}
}
