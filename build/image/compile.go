package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// program is kms-plugin for one architecture.
type program struct {
	arch string
	data []byte
	info *buildinfo.BuildInfo
}

// compile builds for one architecture. What the environment could change of the
// result is set: the levels of the architecture, experiments, flags. Go's own stamp
// of the version control is off, for it tells tags and folders apart that hold the
// same source; the version is given to the linker instead.
func compile(ctx context.Context, o options, arch string) (program, error) {
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		return program{}, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "kms-plugin")
	cmd := exec.CommandContext(ctx, "go", "build", "-C", o.source, "-trimpath", "-buildvcs=false", "-mod=readonly",
		"-ldflags", "-s -w -buildid= -X kms-plugin.io/internal/cli.stamp="+o.version, "-o", out, "./cmd/kms-plugin")
	cmd.Env = append(clean(os.Environ()), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0",
		"GOFLAGS=", "GOEXPERIMENT=", "GOFIPS140=off", "GOWORK=off", "GOTOOLCHAIN=local")
	if o.goCache != "" {
		cmd.Env = append(cmd.Env, "GOCACHE="+o.goCache)
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		return program{}, fmt.Errorf("build for %s: %w\n%s", arch, err, text)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		return program{}, err
	}
	info, err := buildinfo.ReadFile(out)
	if err != nil {
		return program{}, fmt.Errorf("build for %s: %w", arch, err)
	}
	return program{arch, data, info}, nil
}

// clean keeps of the environment what does not describe a build.
func clean(env []string) (out []string) {
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case name == "GOCACHE", name == "GOMODCACHE", name == "GOPROXY", name == "GOSUMDB", name == "GONOSUMDB", name == "GONOSUMCHECK", name == "GOPATH", name == "GOROOT":
			out = append(out, kv)
		case strings.HasPrefix(name, "GO"), strings.HasPrefix(name, "CGO_"):
		default:
			out = append(out, kv)
		}
	}
	return out
}
