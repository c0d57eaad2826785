// Package controlplane runs a real etcd and real kube-apiservers for tests and
// for the demo: built from their Go modules, on free loopback ports, in folders
// that the caller gives, and gone when the caller's context ends.
package controlplane

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Bin are the programs of a control plane.
type Bin struct {
	Etcd, APIServer, Kubectl string
	Plugin                   string
}

// version is what the binaries say of themselves; unstamped ones say v0.0.0.
const version = "v1.37.2"

var programs = []struct{ name, pkg string }{
	{"etcd", "go.etcd.io/etcd/server/v3"},
	{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
}

// Root is the directory of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Build makes the programs, or takes those it made before from the user's cache
// directory. A first build takes minutes and tells of its progress.
func Build(ctx context.Context, progress io.Writer) (Bin, error) {
	dir, err := cacheDir()
	if err != nil {
		return Bin{}, err
	}
	b := Bin{Etcd: filepath.Join(dir, "etcd"), APIServer: filepath.Join(dir, "kube-apiserver"), Kubectl: filepath.Join(dir, "kubectl")}
	stamp := filepath.Join(dir, "complete")
	if _, err := os.Stat(stamp); err != nil {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return Bin{}, err
		}
		for i, p := range programs {
			what := fmt.Sprintf("[%d/%d] building %s %s (once; minutes on a cold cache)", i+1, len(programs), p.name, versionOf(p.name))
			if err := goBuild(ctx, progress, what, filepath.Join(Root(), "test/tools/controlplane"), filepath.Join(dir, p.name), p.pkg, stampFlags()); err != nil {
				return Bin{}, err
			}
		}
		if err := os.WriteFile(stamp, nil, 0o600); err != nil {
			return Bin{}, err
		}
	}
	return b, nil
}

// BuildPlugin builds the daemon of this tree.
func BuildPlugin(ctx context.Context, progress io.Writer, dir string) (string, error) {
	out := filepath.Join(dir, "kms-plugin")
	return out, goBuild(ctx, progress, "building kms-plugin", Root(), out, "./cmd/kms-plugin", "-s -w")
}

func versionOf(name string) string {
	if name == "etcd" {
		return "v3.7.3"
	}
	return version
}

func stampFlags() string {
	const p = "-X k8s.io/component-base/version."
	return strings.Join([]string{"-s -w", p + "gitVersion=" + version, p + "gitMajor=1", p + "gitMinor=37", p + "gitTreeState=clean"}, " ")
}

// cacheDir depends on all that goes into the binaries.
func cacheDir() (string, error) {
	if dir := os.Getenv("KMS_PLUGIN_CONTROLPLANE_BIN"); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, f := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(Root(), "test/tools/controlplane", f))
		if err != nil {
			return "", err
		}
		h.Write(data)
	}
	fmt.Fprint(h, stampFlags(), runtime.Version(), runtime.GOARCH)
	return filepath.Join(cache, "kms-plugin-controlplane", hex.EncodeToString(h.Sum(nil))[:16]), nil
}

func goBuild(ctx context.Context, progress io.Writer, what, dir, out, pkg, ldflags string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", ldflags, "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("build %s: %w", pkg, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	fmt.Fprintf(progress, "%s\n", what)
	for {
		select {
		case err := <-done:
			if err != nil {
				return errors.Join(fmt.Errorf("build %s: %w", pkg, err), errors.New(log.String()))
			}
			fmt.Fprintf(progress, "    done in %s\n", time.Since(begun).Round(time.Second))
			return nil
		case <-tick.C:
			fmt.Fprintf(progress, "    %s\n", time.Since(begun).Round(time.Second))
		}
	}
}
