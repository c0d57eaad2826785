package main

import (
	"os"
	"strings"
	"testing"
)

// The timer of the canary runs what kmsctl takes.
func TestCanaryUnit(t *testing.T) {
	data, err := os.ReadFile("../../deploy/systemd/kms-canary.service")
	if err != nil {
		t.Fatal(err)
	}
	_, line, ok := strings.Cut(string(data), "\nExecStart=/usr/local/bin/kmsctl ")
	if !ok {
		t.Fatalf("no kmsctl in\n%s", data)
	}
	line, _, _ = strings.Cut(line, "\n")
	cmd, rest, err := rootCommand("kmsctl").Find(strings.Fields(line))
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err != nil || cmd.Name() != "canary" || cmd.Flags().NArg() > 0 {
		t.Errorf("%s: %v", line, err)
	}
	if _, err := os.Stat("../../deploy/systemd/kms-canary.timer"); err != nil {
		t.Error(err)
	}
}
