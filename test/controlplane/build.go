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
	Etcd, Etcdctl, Etcdutl                string
	APIServer, ControllerManager, Kubectl string
	Plugin, Kmsctl                        string // of this tree
	Kubelet, Kubeadm, Scheduler           string // only from BuildNode
}

// Versions of what is built. The first is what Kubernetes' programs say of
// themselves; unstamped ones say v0.0.0.
const (
	Version     = "v1.37.2"
	EtcdVersion = "v3.7.3"
)

type program struct{ name, pkg string }

var programs = []program{
	{"etcd", "go.etcd.io/etcd/server/v3"},
	{"etcdctl", "go.etcd.io/etcd/etcdctl/v3"},
	{"etcdutl", "go.etcd.io/etcd/etcdutl/v3"},
	{"kubectl", "k8s.io/kubernetes/cmd/kubectl"},
	{"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
	{"kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"},
}

// nodePrograms are what a node has beside them.
var nodePrograms = []program{
	{"kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"},
	{"kubelet", "k8s.io/kubernetes/cmd/kubelet"},
	{"kubeadm", "k8s.io/kubernetes/cmd/kubeadm"},
}

// Root is the directory of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// Build makes the programs, or takes those it made before from the user's cache
// directory. A first build takes minutes and tells of its progress.
func Build(ctx context.Context, progress io.Writer) (Bin, error) {
	in, err := build(ctx, progress, programs)
	if err != nil {
		return Bin{}, err
	}
	return Bin{Etcd: in("etcd"), Etcdctl: in("etcdctl"), Etcdutl: in("etcdutl"),
		APIServer: in("kube-apiserver"), ControllerManager: in("kube-controller-manager"), Kubectl: in("kubectl")}, nil
}

// BuildAll is Build, and our own programs in dir.
func BuildAll(ctx context.Context, progress io.Writer, dir string) (Bin, error) {
	b, err := Build(ctx, progress)
	if err == nil {
		b.Plugin, err = BuildPlugin(ctx, progress, dir)
	}
	if err == nil {
		b.Kmsctl, err = BuildKmsctl(ctx, progress, dir)
	}
	return b, err
}

// BuildNode makes also those of a kubeadm node.
func BuildNode(ctx context.Context, progress io.Writer) (Bin, error) {
	b, err := Build(ctx, progress)
	if err != nil {
		return Bin{}, err
	}
	in, err := build(ctx, progress, nodePrograms)
	if err != nil {
		return Bin{}, err
	}
	b.Scheduler, b.Kubelet, b.Kubeadm = in("kube-scheduler"), in("kubelet"), in("kubeadm")
	return b, nil
}

// build makes what is missing, and returns where each program is.
func build(ctx context.Context, progress io.Writer, programs []program) (in func(name string) string, err error) {
	dir, err := cacheDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	in = func(name string) string { return filepath.Join(dir, name) }
	for i, p := range programs {
		if _, err := os.Stat(in(p.name)); err == nil {
			continue
		}
		what := fmt.Sprintf("[%d/%d] building %s %s (once; minutes on a cold cache)", i+1, len(programs), p.name, versionOf(p.name))
		half := in(p.name + ".part") // a build that was killed leaves no program
		if err := goBuild(ctx, progress, what, filepath.Join(Root(), "test/tools/controlplane"), half, p.pkg, stampFlags()); err != nil {
			return nil, err
		}
		if err := os.Rename(half, in(p.name)); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// BuildPlugin builds the daemon of this tree.
func BuildPlugin(ctx context.Context, progress io.Writer, dir string) (string, error) {
	return buildOurs(ctx, progress, dir, "kms-plugin")
}

// BuildPluginOf builds the daemon of an earlier commit of this repository.
func BuildPluginOf(ctx context.Context, progress io.Writer, dir, commit string) (string, error) {
	tree := filepath.Join(dir, commit)
	if err := os.MkdirAll(tree, 0o700); err != nil {
		return "", err
	}
	archive := exec.CommandContext(ctx, "sh", "-c", `git -C "$1" archive "$2" | tar -x -C "$3"`, "sh", Root(), commit, tree)
	if out, err := archive.CombinedOutput(); err != nil || len(out) > 0 {
		return "", fmt.Errorf("commit %s: %w: %s", commit, err, out)
	}
	out := filepath.Join(dir, "kms-plugin-"+commit)
	return out, goBuild(ctx, progress, "building kms-plugin of "+commit, tree, out, "./cmd/kms-plugin", "-s -w")
}

// BuildKmsctl builds the operator's tool of this tree.
func BuildKmsctl(ctx context.Context, progress io.Writer, dir string) (string, error) {
	return buildOurs(ctx, progress, dir, "kmsctl")
}

func buildOurs(ctx context.Context, progress io.Writer, dir, name string) (string, error) {
	out := filepath.Join(dir, name)
	return out, BuildProgram(ctx, progress, out, "./cmd/"+name)
}

// BuildProgram builds another program of this tree, static.
func BuildProgram(ctx context.Context, progress io.Writer, out, pkg string) error {
	return goBuild(ctx, progress, "building "+filepath.Base(out), Root(), out, pkg, "-s -w")
}

func versionOf(name string) string {
	if strings.HasPrefix(name, "etcd") {
		return EtcdVersion
	}
	return Version
}

func stampFlags() string {
	const p = "-X k8s.io/component-base/version."
	return strings.Join([]string{"-s -w", p + "gitVersion=" + Version, p + "gitMajor=1", p + "gitMinor=37", p + "gitTreeState=clean"}, " ")
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

func goBuild(ctx context.Context, progress io.Writer, what, dir, out, pkg, ldflags string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-ldflags", ldflags, "-o", out}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
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
