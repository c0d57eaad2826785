//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/fakekms"
)

// block is one command block of a runbook.
type block struct {
	name string
	exit int
	text string
}

var blockStart = regexp.MustCompile(`^\s*<!-- run: ([a-z0-9-]+)(?: exit=(\d+))? -->$`)

// blocks reads the marked command blocks of a document, and fails if one is not
// marked: it would rot.
func blocks(t *testing.T, path string) (out []block) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var next *block
	inside, indent := false, ""
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\n")
		bare := strings.TrimSpace(line)
		switch m := blockStart.FindStringSubmatch(line); {
		case m != nil:
			exit, _ := strconv.Atoi(m[2])
			next = &block{name: m[1], exit: exit}
		case !inside && bare == "```sh":
			if next == nil {
				t.Fatalf("%s has a command block that is not marked to be run", path)
			}
			inside, indent = true, line[:strings.Index(line, "`")]
		case inside && bare == "```":
			out, inside, next = append(out, *next), false, nil
		case inside:
			next.text += strings.TrimPrefix(line, indent) + "\n"
		}
	}
	return out
}

// runbook is a place where blocks are run one after the other.
type runbook struct {
	*cluster
	p     [3]*controlplane.Plugin
	a     [3]*controlplane.APIServer
	env   []string
	setup string
	// unready: a restarted API server is not waited for until it serves.
	unready bool
}

const backupsOf = "backups"

func newRunbook(t *testing.T) *runbook {
	t.Helper()
	r := &runbook{cluster: newCluster(t)}
	config := filepath.Join(r.dir, "config.yaml")
	r.configureShared(config)
	for i := range r.p {
		r.p[i] = r.nodePlugin(fmt.Sprintf("p%d", i+1), config)
	}
	for i := range r.a {
		r.a[i] = r.apiServerWith(fmt.Sprintf("api%d", i+1), []string{"--etcd-compaction-interval=10s"}, r.p[i])
	}
	tools := filepath.Join(r.dir, "tools")
	if err := errors.Join(os.Mkdir(tools, 0o700), os.Mkdir(filepath.Join(r.dir, backupsOf), 0o700), os.Mkdir(filepath.Join(r.dir, "evidence"), 0o700)); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"kmsctl": bin.Kmsctl, "kms-plugin": bin.Plugin, "kubectl": bin.Kubectl} {
		if err := os.Symlink(path, filepath.Join(tools, name)); err != nil {
			t.Fatal(err)
		}
	}
	// This etcd has no TLS; kmsctl wants to be told, and etcdctl does not take it.
	if err := os.WriteFile(filepath.Join(tools, "etcdctl"), fmt.Appendf(nil, "#!/bin/bash\nfor a; do [[ $a == --*= ]] || args+=(\"$a\"); done\nexec %s \"${args[@]}\"\n", bin.Etcdctl), 0o700); err != nil {
		t.Fatal(err)
	}
	kube := r.kubeFlags(r.a[:]...)
	key := func() string { return r.cloud.CreateKey("eu-central-1", fakekms.KeyOptions{}) }
	var plugins []string
	for _, p := range r.p {
		plugins = append(plugins, p.HTTP())
	}
	r.cloud.AddPrincipal("operator")
	r.env = []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI=" + r.cloud.CredentialsURL("operator"), "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "PATH=" + tools + ":" + os.Getenv("PATH"), "HOME=" + r.dir, bridge(t, tools, r.answer, "aws", "ssh", "scp"),
		"NODES=node1 node2 node3", "SERVERS=" + kube[3], "KUBECONFIG=" + kube[1], "PLUGINS=" + strings.Join(plugins, ","),
		"ETCD=--endpoints=" + r.etcd.URL + " --cacert= --cert= --key=", "ENCRYPTION=" + r.encryptions(3),
		"CONFIG=" + config, "BACKUPS=" + filepath.Join(r.dir, backupsOf), "KEEP=30d", "COMPACTION=25s", "ACTIVATE_IN=3 seconds",
		"NEXT_ARN=" + key(), "FRESH_ARN=" + key(), "SPARE_ARN=" + key(), "EVIDENCE=" + filepath.Join(r.dir, "evidence"), "AUDIT=/run/kms-plugin/audit.log", "NEXT_ENDPOINT=" + r.cloud.URL()}
	return r
}

// configureShared writes the configuration that is the same on every node.
func (r *runbook) configureShared(path string) {
	r.t.Helper()
	r.configureKeys(path, "/run/kms-plugin", "write", "")
	data, err := os.ReadFile(path)
	if err == nil {
		text := strings.Replace(string(data), "readableFor: 0s", "readableFor: 2s", 1) // and what is closed is closed soon
		text = strings.Replace(text, "probe: {", "health: {keyState: 2s}\nprobe: {", 1)
		err = os.WriteFile(path, []byte(text), 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// nodePlugin starts a plugin with that configuration as /run/kms-plugin/config.yaml.
func (c *cluster) nodePlugin(name, config string) *controlplane.Plugin {
	c.t.Helper()
	c.cloud.AddPrincipal(name)
	home := filepath.Join(c.dir, name)
	data, err := os.ReadFile(config)
	if err := errors.Join(err, os.MkdirAll(home, 0o700), os.WriteFile(filepath.Join(home, "config.yaml"), data, 0o600)); err != nil {
		c.t.Fatal(err)
	}
	p := controlplane.NewNodePlugin(bin, home, "plugin", []string{
		"AWS_CONTAINER_CREDENTIALS_FULL_URI=" + c.cloud.CredentialsURL(name), "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null"})
	if err := p.Restart(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = p.Kill()
		if c.t.Failed() {
			c.t.Logf("%s:\n%s", name, p.Tail())
		}
	})
	return p
}

// answer is what aws, ssh and scp do here.
func (r *runbook) answer(c call) answer {
	var err error
	switch {
	case c.Tool == "scp" && len(c.Args) == 2:
		node, path, _ := strings.Cut(c.Args[1], ":")
		to := filepath.Join(r.home(node), filepath.Base(path))
		err = exec.Command("cp", c.Args[0], to+".new").Run()
		if err == nil { // a copy is not atomic, and half a configuration would be refused
			err = os.Rename(to+".new", to)
		}
	case c.Tool == "aws" && len(c.Args) == 6 && c.Args[0] == "kms":
		err = r.aws(c.Args[1], c.Args[5])
	case c.Tool == "ssh" && slices.Equal(c.Args[1:], []string{"systemctl", "restart", "kube-apiserver"}):
		a := r.a[c.Args[0][len("node")]-'1']
		restart := a.Restart
		if r.unready {
			restart = a.RestartUnready
		}
		err = errors.Join(a.Stop(), restart(r.t.Context()))
	case c.Tool == "ssh" && c.Args[1] == "kmsctl":
		return r.onNode(c.Args[0], c.Args[2:])
	default:
		err = fmt.Errorf("no stand-in for %s %q", c.Tool, c.Args)
	}
	if err != nil {
		return answer{Stderr: err.Error(), Code: 1}
	}
	return answer{}
}

func (r *runbook) home(node string) string {
	return filepath.Join(r.dir, "p"+strings.TrimPrefix(node, "node"))
}

func (r *runbook) aws(op, arn string) error {
	switch op {
	case "rotate-key-on-demand":
		r.cloud.Rotate(arn)
	case "disable-key":
		r.cloud.SetState(arn, "Disabled")
	case "enable-key":
		r.cloud.SetState(arn, "Enabled")
	case "cancel-key-deletion": // which leaves it disabled
		r.cloud.SetState(arn, "Disabled")
	default:
		return fmt.Errorf("no stand-in for aws kms %s", op)
	}
	return nil
}

func (r *runbook) onNode(node string, args []string) answer {
	var out, log strings.Builder
	for i := range args {
		args[i] = strings.NewReplacer("/run/kms-plugin", r.home(node), "/var/tmp", r.home(node)).Replace(args[i])
	}
	cmd := exec.Command(bin.Kmsctl, args...)
	cmd.Stdout, cmd.Stderr = &out, &log
	_ = cmd.Run() // its code is in the answer
	return answer{out.String(), log.String(), cmd.ProcessState.ExitCode()}
}

// run runs one block as it stands in the document.
func (r *runbook) run(b block) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", r.setup+b.text)
	cmd.Env, cmd.Dir, cmd.WaitDelay = r.env, r.dir, time.Second
	out, err := cmd.CombinedOutput()
	r.t.Logf("--- %s\n%s%s", b.name, b.text, out)
	if code := cmd.ProcessState.ExitCode(); code != b.exit {
		r.t.Fatalf("block %s ended with %d, want %d (%v)", b.name, code, b.exit, err)
	}
}

// happens is what befalls the cluster before a block that is about it, and is noticed.
func (r *runbook) happens(block string) {
	r.t.Helper()
	switch block {
	case "h-back":
		r.cloud.SetState(r.arn, fakekms.PendingDeletion)
	case "h-lost":
		r.cloud.Delete(r.arn)
	default:
		return
	}
	for _, p := range r.p {
		r.within(30*time.Second, "the plugin closes the key", func(ctx context.Context) error {
			if _, err := p.Status(ctx); err == nil || !strings.Contains(err.Error(), "key-state") {
				return fmt.Errorf("Status: %v", err)
			}
			return nil
		})
	}
}

// Every command of the runbook does what the runbook says, on real parts.
func TestRunbook(t *testing.T) {
	r := newRunbook(t)
	all := blocks(t, filepath.Join(controlplane.Root(), "docs/runbooks/rotation.md"))
	for i := range 30 {
		r.create(r.a[i%3], fmt.Sprintf("s%d", i))
	}
	keyIDs := map[string]string{}
	for _, b := range all {
		if b.name == "setup" {
			r.setup = b.text
			continue
		}
		r.happens(b.name)
		r.run(b)
		keyIDs[b.name] = r.stored("s7").KeyID
		if !t.Failed() && strings.HasSuffix(b.name, "-run") {
			for i := range 30 {
				r.read(r.a[i%3], fmt.Sprintf("s%d", i))
			}
		}
	}
	for _, step := range []struct{ before, after, name string }{
		{"a-plan", "a-run", "prod:"}, {"a-run", "b-run", "next:"}, {"b-run", "c-generation", "next:"}, {"c-generation", "c-kek", "fresh:"}, {"c-kek", "d-back", "prod:"}, {"d-back", "h-rescue", "fresh:"}, {"h-rescue", "s-spare", "fresh:"},
	} {
		if keyIDs[step.before] == keyIDs[step.after] || !strings.HasPrefix(keyIDs[step.after], step.name) {
			t.Errorf("after %s the key_id is %q, before it was %q", step.after, keyIDs[step.after], keyIDs[step.before])
		}
	}
	if used := slices.Collect(maps.Values(keyIDs)); keyIDs["a-plan"] == keyIDs["d-back"] {
		t.Errorf("a key_id was used twice: %q", used)
	}
	for i := range r.a { // without anything in memory: the keys that were disabled and lost are not needed
		r.restart(r.p[i], r.a[i])
		for j := range 30 {
			r.read(r.a[i], fmt.Sprintf("s%d", j))
		}
	}
}
