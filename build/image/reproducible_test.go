package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// kmsctl, which is no part of the image, comes out alike from two folders too.
func TestKmsctlIsReproducible(t *testing.T) {
	var first []byte
	for range 2 {
		out := filepath.Join(t.TempDir(), "kmsctl")
		cmd := exec.CommandContext(t.Context(), "go", "build", "-C", source(t), "-trimpath", "-ldflags", "-s -w", "-o", out, "./cmd/kmsctl")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if *fresh {
			cmd.Env = append(cmd.Env, "GOCACHE="+t.TempDir())
		}
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && !bytes.Equal(first, data) {
			t.Errorf("%d and %d bytes, which differ", len(first), len(data))
		}
		first = data
	}
}
