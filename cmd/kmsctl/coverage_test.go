package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/drill"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/test/etcdfill"
)

// A gate says nothing about a file in which damage cannot be told, unless somebody answers
// for it; a report says which file it is.
func TestGatesOverAFileWithoutAHash(t *testing.T) {
	with, without := filepath.Join(t.TempDir(), "with.db"), filepath.Join(t.TempDir(), "db")
	if _, err := etcdfill.Snapshot(with, 80); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(with)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(without, data[:len(data)-32], 0o600); err != nil {
		t.Fatal(err)
	}
	const gate = "--require=no-plaintext"
	for name, tt := range map[string]struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		"with a hash":              {[]string{with, gate}, cli.ExitOK, "hash verified", ""},
		"without":                  {[]string{without, gate}, cli.ExitUsage, "", "which has no hash to verify: damage in it cannot be told\nhint: take a snapshot with etcdctl snapshot save, or --allow-unverified to judge it all the same\n"},
		"without, as JSON":         {[]string{without, gate, "-o", "json"}, cli.ExitUsage, "", "has no hash"},
		"somebody answers for it":  {[]string{without, gate, "--allow-unverified"}, cli.ExitOK, "no hash to verify: not from etcdctl snapshot save", ""},
		"and it does not hold":     {[]string{without, gate, "--allow-unverified", "--resources=configmaps"}, cli.ExitFound, "FAIL  no-plaintext", ""},
		"nothing is to be judged":  {[]string{without}, cli.ExitOK, "no hash to verify: not from etcdctl snapshot save", ""},
		"with a hash, and allowed": {[]string{with, gate, "--allow-unverified"}, cli.ExitOK, "hash verified", ""},
	} {
		out, errs, code := command(append([]string{"coverage", "--resources=secrets", "--snapshot"}, tt.args...)...)
		if code != tt.code || !strings.Contains(out, tt.stdout) || !strings.Contains(errs, tt.stderr) || (tt.stdout == "") != (out == "") {
			t.Errorf("%s: exit %d\n%s\n%s", name, code, out, errs)
		}
	}
	out, errs, code := command("inventory", with, without)
	if code != cli.ExitOK || !strings.Contains(out, ", hash verified\n") || !strings.Contains(out, ", no hash to verify\n") {
		t.Errorf("inventory: exit %d\n%s\n%s", code, out, errs)
	}
}

// A rehearsal tells whether its file was what it should be.
func TestDrillTellsOfTheHash(t *testing.T) {
	for verified, want := range map[bool]string{true: `snapshot "f.db", hash verified, revision 7: `, false: `snapshot "f.db", no hash to verify, revision 7: `} {
		var b bytes.Buffer
		r := &drill.Report{Source: etcdstore.Info{File: "f.db", Revision: 7, Verified: verified}}
		if err := printDrill(&b, r, "text"); err != nil || !strings.HasPrefix(b.String(), want) {
			t.Errorf("%q, want %q", b.String(), want)
		}
	}
}
