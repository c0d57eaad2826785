//go:build e2enode

package e2enode

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/node"
)

// try is where an operator has a file that is not in force yet.
const try = kit + "/try.yaml"

// mistake is a wrong thing on a node, and what names it: a whole report has this
// one problem, in one line, and this remedy.
type mistake struct {
	name    string
	file    string // put at try
	command []string
	problem string // name of the check, subject and reason
	hint    string
}

// mistakes are named before the API server is harmed: it answers all the time, and
// the plugin that runs goes on.
func (c *cluster) mistakes(t *testing.T) {
	n := c.nodes[0]
	within(t, time.Minute, "the mirror pod of the plugin", func(ctx context.Context) error {
		_, err := pluginStatus(ctx, c, n)
		return err
	})
	before := pluginOf(t, c, n)
	b := watch(t, "mistakes", c.api)
	sound(t, n, c.doctor(configPath))
	sound(t, n, []string{"kmsctl", "preflight"})
	for _, m := range c.filesWithMistakes(t, n) {
		m.find(t, n)
	}
	c.cloud.SetCredentials(n.Name, -time.Hour, false)
	mistake{name: "expired credential", command: c.doctor(configPath),
		problem: "credential kek-1: get-credentials with " + identity(c.arn) + ": credential (NoCredentials): get credentials: " +
			"the source hands out a credential that has ended already: it is behind, or the clock of this node is ahead",
		hint: "look at the source of the credential: instance role, Roles Anywhere helper or credential endpoint"}.find(t, n)
	c.cloud.SetCredentials(n.Name, time.Hour, false)
	sound(t, n, c.doctor(configPath))
	c.liveTypo(t, n)
	b.check(t)
	if after := pluginOf(t, c, n); after.RestartCount != before.RestartCount || !after.Ready {
		t.Errorf("the plugin was harmed: %+v, before %+v", after, before)
	}
	c.ready(t, c.api, 10*time.Second)
}

func (c *cluster) doctor(config string) []string {
	return []string{"kms-plugin", "doctor", "--config", config, "--sts-endpoint", c.cloud.URL()}
}

// filesWithMistakes are what an operator is about to put into place.
func (c *cluster) filesWithMistakes(t *testing.T, n *node.Node) []mistake {
	t.Helper()
	config := installed(t, n, "kms-plugin/config.yaml")
	manifest, err := n.Run(t.Context(), "cat", apiServerPath)
	must(t, err)
	wrongARN := c.arn[:len(c.arn)-4] + "0000"
	typo := replaceOnce(t, config, "stateDir:", "statedir:")
	const unknown, meant = `: line 9: unknown field "statedir"`, `is "stateDir" meant?`
	return []mistake{
		{name: "typo in the configuration, by doctor", file: typo, command: c.doctor(try), problem: "config: " + try + unknown, hint: meant},
		{name: "typo in the configuration, by preflight", file: typo, command: []string{"kmsctl", "preflight", "--plugin-config", try},
			problem: "plugin-config: " + try + unknown, hint: meant},
		{name: "wrong key ARN", file: replaceOnce(t, config, c.arn, wrongARN), command: c.doctor(try),
			problem: "kms-roundtrip kek-1: wrap with " + identity(wrongARN) + ": key-state (NotFoundException): Key '" + wrongARN + "' does not exist",
			hint:    "the key does not exist in this region and account, or was deleted: compare keyARN"},
		{name: "socket directory not mounted", command: []string{"kmsctl", "preflight", "--manifest", try},
			file:    replaceOnce(t, manifest, "    - mountPath: /run/kms-plugin\n      name: kms-plugin-socket\n      readOnly: true\n", ""),
			problem: `apiserver-socket-mount: the socket directory /run/kms-plugin of provider "kms-plugin" is not mounted into kube-apiserver: it will never reach the plugin`,
			hint:    "mount the directory /run/kms-plugin from the host: extraVolumes of kubeadm, or volumes and volumeMounts in " + try},
		{name: "renamed provider", command: []string{"kmsctl", "preflight", "--manifest=", "--encryption-config", try},
			file:    replaceOnce(t, installed(t, n, "encryption/2-write.yaml"), "name: kms-plugin\n", "name: our-kms\n"),
			problem: `provider-names: N objects (secrets and others) are stored under the kms provider "kms-plugin", and the file has "our-kms": a provider cannot be renamed`,
			hint:    `name it "kms-plugin" again; for another name keep the old one as a second provider with the same endpoint, kmsctl rotate run, and drop it then`},
	}
}

// identity is how errors name a KEK.
func identity(arn string) string {
	p := strings.Split(arn, ":")
	return "awskms:aws:" + p[3] + ":" + p[4] + ":" + strings.TrimPrefix(p[5], "key/")
}

// objects: how many there are is up to those who write meanwhile.
var objects = regexp.MustCompile(`\b\d+ objects\b`)

// find has the mistake named.
func (m mistake) find(t *testing.T, n *node.Node) {
	t.Helper()
	if m.file != "" {
		put(t, n, m.file)
	}
	out, code := report(t, n, m.command)
	var problems []string
	lines := strings.Split(out, "\n")
	for i, l := range lines {
		if found, ok := strings.CutPrefix(l, "[PROBLEM] "); ok {
			problems = append(problems, found+"\n"+strings.TrimPrefix(lines[i+1], "          hint: "))
		}
	}
	want := m.problem + "\n" + m.hint
	if code != 3 || len(problems) != 1 || objects.ReplaceAllString(problems[0], "N objects") != want {
		t.Errorf("%s: exit code %d and %d problems:\n%s\nwant 3 and one:\n%s\nall of it:\n%s", m.name, code, len(problems), strings.Join(problems, "\n"), want, out)
		return
	}
	t.Logf("%s, named by %s:\n%s", m.name, strings.Join(m.command[:2], " "), problems[0])
}

// liveTypo makes the mistake in the file that is in force: the plugin goes on with
// what it has.
func (c *cluster) liveTypo(t *testing.T, n *node.Node) {
	t.Helper()
	good := installed(t, n, "kms-plugin/config.yaml")
	must(t, n.Write(configPath, replaceOnce(t, good, "stateDir:", "statedir:")))
	mistake{name: "typo in the file in force", command: []string{"kmsctl", "preflight"},
		problem: "plugin-config: " + configPath + `: line 9: unknown field "statedir"`, hint: `is "stateDir" meant?`}.find(t, n)
	must(t, n.Write(configPath, good))
	sound(t, n, []string{"kmsctl", "preflight"})
}

// sound demands a report without a problem.
func sound(t *testing.T, n *node.Node, command []string) {
	t.Helper()
	out, code := report(t, n, command)
	if code != 0 {
		t.Errorf("%s ends with %d", strings.Join(command, " "), code)
	}
	t.Logf("%s:\n%s", strings.Join(command, " "), out)
}

func report(t *testing.T, n *node.Node, command []string) (stdout string, code int) {
	t.Helper()
	cmd := n.Command(t.Context(), command...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fail(t, "%v", err)
	}
	return out.String() + errs.String(), cmd.ProcessState.ExitCode()
}

func put(t *testing.T, n *node.Node, data string) {
	t.Helper()
	cmd := n.Command(t.Context(), "install", "-m", "0600", "/dev/stdin", try)
	cmd.Stdin = strings.NewReader(data)
	if out, err := cmd.CombinedOutput(); err != nil {
		fail(t, "%v: %s", err, out)
	}
}

func replaceOnce(t *testing.T, text, old, by string) string {
	t.Helper()
	if strings.Count(text, old) != 1 {
		fail(t, "%q is not once in\n%s", old, text)
	}
	return strings.Replace(text, old, by, 1)
}
