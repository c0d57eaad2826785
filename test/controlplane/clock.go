package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ClockVariable names the file that a plugin of BuildSteppedPlugin reads: by how many
// seconds its wall clock is off.
const ClockVariable = "KMS_TEST_CLOCK"

// stepper is added to the daemon by the build alone; no source of ours holds it.
const stepper = `package main

import (
	"os"
	"strconv"
	"strings"
	"time"
)

func init() {
	path := os.Getenv("` + ClockVariable + `")
	go func() {
		for ; path != ""; time.Sleep(20 * time.Millisecond) {
			b, _ := os.ReadFile(path)
			n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			time.KMSTestStep.Store(n)
		}
	}()
}
`

// BuildSteppedPlugin builds the daemon of this tree with a wall clock that can be
// stepped: the standard library's time.Now is overlaid (go help build, -overlay). The
// monotonic clock stays as it is, as when a real clock is set.
func BuildSteppedPlugin(ctx context.Context, progress io.Writer, dir string) (string, error) {
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src/time/time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		return "", err
	}
	const read = "sec, nsec, mono := runtimeNow()\n"
	if bytes.Count(source, []byte("func Now() Time {\n\t"+read)) != 1 {
		return "", errors.New("time.Now of this Go is not as this knows it")
	}
	source = bytes.Replace(source, []byte("func Now() Time {\n\t"+read),
		[]byte("var KMSTestStep stepInt64\n\ntype stepInt64 struct{ v int64 }\n\nfunc (s *stepInt64) Store(n int64) { s.v = n }\n\nfunc Now() Time {\n\t"+read+"\tsec += KMSTestStep.v\n"), 1)
	overlaid, added, list := filepath.Join(dir, "time.go"), filepath.Join(dir, "stepper.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {
		original: overlaid, filepath.Join(Root(), "cmd/kms-plugin/stepper.go"): added}})
	err = errors.Join(err, os.WriteFile(overlaid, source, 0o600), os.WriteFile(added, []byte(stepper), 0o600), os.WriteFile(list, replace, 0o600))
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "kms-plugin-stepped")
	return out, goBuild(ctx, progress, "building kms-plugin with a clock that steps", Root(), out, "./cmd/kms-plugin", "-s -w", "-overlay", list)
}
