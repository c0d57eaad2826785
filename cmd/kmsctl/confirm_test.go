package main

import (
	"bytes"
	"maps"
	"os"
	"strings"
	"testing"

	"kms-plugin.io/internal/cli"
)

// A file with other contents is replaced when the answer on a terminal is y, and keeps
// its bytes, as all others do, with any other answer.
func TestInitAsks(t *testing.T) {
	const mine = "# edited by hand\n"
	for answer, replaced := range map[string]bool{"y\n": true, "Y\n": true, "n\n": false, "\n": false, "\x04": false /* end of input */} {
		dir := t.TempDir()
		args := []string{"init", "--cluster-id", "c", "--localfile", "--dir", dir}
		if _, errs, code := command(args...); code != cli.ExitOK {
			t.Fatal(errs)
		}
		path := dir + "/kms-plugin/config.yaml"
		made, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, mine)
		before := treeOf(t, dir)

		tty, seen := terminal(t)
		root := rootCommand("kmsctl")
		root.SetArgs(args)
		root.SetIn(tty)
		root.SetOut(&bytes.Buffer{})
		root.SetErr(tty)
		ended := make(chan error, 1)
		go func() { ended <- root.ExecuteContext(t.Context()) }()
		seen.until(t, "replace 1 files? [y/N] ", func() {})
		if _, err := seen.keyboard.WriteString(answer); err != nil {
			t.Fatal(err)
		}
		err = <-ended
		have, readErr := os.ReadFile(path)
		if readErr != nil {
			t.Fatal(readErr)
		}
		switch {
		case replaced && (err != nil || !bytes.Equal(have, made)):
			t.Errorf("%q: %v, and the file is %q", answer, err, have)
		case !replaced && (err == nil || !strings.Contains(err.Error(), "nothing was written") || string(have) != mine || !maps.Equal(before, treeOf(t, dir))):
			t.Errorf("%q: %v, and the file is %q", answer, err, have)
		}
	}
}
