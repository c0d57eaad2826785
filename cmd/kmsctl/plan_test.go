package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/rotation"
)

var printed = regexp.MustCompile(`(?m)(kmsctl .*?)(?:   #.*|, on each node)?$`)

// Every command that a plan prints is one that kmsctl takes.
func TestPlannedCommandsParse(t *testing.T) {
	c := rotatePlanCommand()
	if err := c.ParseFlags([]string{"--kubeconfig=/k", "--servers=https://a:1,https://b:2", "--endpoints=http://e:1", "--cacert=", "--prefix=/r", "--encryption-config=/e f", "--plugin-config=/p", "--plugins=h:1"}); err != nil {
		t.Fatal(err)
	}
	flags := givenFlags(c)
	if want := " --encryption-config='/e f'"; flags.Encryption != want || flags.FirstEncryption != want {
		t.Errorf("%q and %q, want %q", flags.Encryption, flags.FirstEncryption, want)
	}
	f := &rotation.Facts{Target: "next", KEK: "awskms arn:aws:kms:eu-west-1:1:key/x", Left: []string{"secrets: 1 of 2"}, KeyIDHash: "sha256:x", Fleet: &fleet.State{},
		Old: []rotation.OldKey{{Name: "prod", Role: "read", KEK: "localfile /x"}}}
	var b strings.Builder
	for _, material := range []bool{false, true} {
		f.Material = material
		if err := rotation.MakePlan(f, flags).Print(&b); err != nil {
			t.Fatal(err)
		}
	}
	found := printed.FindAllStringSubmatch(b.String(), -1)
	if len(found) < 10 {
		t.Fatalf("only %d commands in\n%s", len(found), b.String())
	}
	for _, m := range found {
		args := strings.Fields(strings.ReplaceAll(m[1], "'/e f'", "/e"))[1:]
		cmd, rest, err := rootCommand("kmsctl").Find(args)
		if err == nil && cmd.HasParent() {
			err = cmd.ParseFlags(rest)
		}
		if err != nil || !cmd.HasParent() {
			t.Errorf("%s: %v", m[1], err)
		}
	}
}

// The same KEK under another name must not be disabled: both would end.
func TestRetireOfAKEKInUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte(`{apiVersion: kms-plugin.io/v1, kind: KMSPluginConfiguration, clusterID: c, socket: {path: /run/k/kms.sock}, stateDir: /run/k,
keys: [{name: next, role: write, awskms: {keyARN: "arn:aws:kms:eu-west-1:111122223333:key/mrk-1"}}, {name: prod, role: retired, awskms: {keyARN: "arn:aws:kms:us-east-1:111122223333:key/mrk-1", encryptionContext: {a: b}}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := command("retire", "prod", "--plugin-config", file, "--no-snapshots")
	if code != cli.ExitFailed || !strings.Contains(stderr, `key "prod" is the same KEK as "next": disabling it would end both`) || !strings.Contains(stderr, "hint: take key") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
