package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/rotation"
	"kms-plugin.io/pkg/keys"
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

// A run ends with what may become of each other key.
func TestPrintRotated(t *testing.T) {
	digest := strings.Repeat("0", 32)
	ring := &config.Config{Keys: []config.Key{{Name: "next", Role: keys.RoleWrite, AlsoWrapWith: []string{"also"}}, {Name: "also", Role: keys.RoleRead},
		{Name: "prod", Role: keys.RoleWrite}, {Name: "older", Role: keys.RoleRetired}, {Name: "used", Role: keys.RoleRead}}}
	r := &rotation.Result{KeyID: "next:" + digest, Report: &coverage.Report{Keys: []coverage.Key{{KeyID: "next:" + digest, Current: true, Objects: 9}, {KeyID: "used:" + digest, Objects: 2}}}}
	var b strings.Builder
	if err := printRotated(&b, rotated{Result: r}, ring); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`key "prod": no object is under it; it may be retired`, "kmsctl retire older --snapshots DIR", `key "used": 2 objects are under it; it stays`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), `key "also"`) || strings.Contains(b.String(), `key "next"`) {
		t.Errorf("what stays is listed:\n%s", b.String())
	}

	// With the backups: until when. The latest of several key_ids of a name counts, and
	// the newest snapshot too, for there will be a newer one.
	day := time.Date(2026, 11, 10, 15, 0, 0, 0, time.UTC)
	inv := &coverage.Inventory{Keep: "720h0m0s", Snapshots: make([]coverage.Snapshot, 3), Keys: []coverage.Needed{
		{Key: coverage.Key{KeyID: "prod:" + digest}, LastFile: "a.db", LastTime: day.AddDate(0, 0, -9)},
		{Key: coverage.Key{KeyID: "prod:1" + digest[1:]}, LastFile: "b.db", LastTime: day, Newest: true}}}
	b.Reset()
	if err := printRotated(&b, rotated{r, inv}, ring); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`key "prod": no object is under it; last needed by b.db of 2026-11-10, so it may go on 2026-12-11; it may be retired`,
		`key "older": no object is under it, and none of 3 snapshots needs it; it is retired`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
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
