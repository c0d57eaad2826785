//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	expect(retire(3, "--snapshots", before+","+after), "FAIL  backups: "+before+" needs it")
	// An API server that starts anew opens nothing under it either.
	c.restart(a)
	for i := range 20 {
		c.read(a, fmt.Sprintf("s%d", i))
	}
	expect(retire(0, "--no-snapshots"), "may be disabled")
}
