//go:build e2enode

// Package e2enode drives real kubeadm nodes: kubelet, containerd and static pods,
// kms-plugin among them, in namespaces (test/node), with the fake AWS KMS as
// cloud. It asserts through the API, on the bytes in etcd, and on what an operator
// would be told.
package e2enode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"kms-plugin.io/internal/bootstrap"
	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/node"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// What all nodes share; set inside.
var (
	lan  *node.LAN
	imds *metadata
)

// firstFailure is what fail was told first: the logs of nodes come after it, in thousands of lines.
var firstFailure atomic.Pointer[string]

// fail ends a test.
func fail(t *testing.T, format string, args ...any) {
	t.Helper()
	text := t.Name() + ": " + fmt.Sprintf(format, args...)
	firstFailure.CompareAndSwap(nil, &text)
	t.Fatalf(format, args...)
}

func run(m *testing.M) int {
	code, err := 0, error(nil)
	if node.Dir() == "" {
		code, err = outside(context.Background())
	} else if err = inside(); err == nil {
		code = m.Run()
		if first := firstFailure.Load(); first != nil {
			fmt.Fprintln(os.Stderr, "e2enode: first of all failed", *first) // far above, with -v
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2enode:", err)
		return 1
	}
	return code
}

func inside() (err error) {
	if lan, err = node.NewLAN(binDir(node.Dir())); err == nil {
		imds, err = serveMetadata()
	}
	return err
}

func binDir(dir string) string { return filepath.Join(dir, "bin") }

// outside prepares what needs a network and the host's files, and goes inside.
func outside(ctx context.Context) (int, error) {
	if err := node.InstallPackages(ctx, os.Stderr); err != nil {
		return 0, err
	}
	bin, err := controlplane.BuildNode(ctx, os.Stderr)
	if err != nil {
		return 0, err
	}
	dir, err := node.NewDir()
	if err != nil {
		return 0, err
	}
	if err := prepare(ctx, dir, bin); err != nil {
		return 0, err
	}
	return node.Enter(dir)
}

// The images of the plugin: what `make image` makes as it is, the same source as
// another version, and one that is broken.
const (
	goodImage = bootstrap.Image
	nextImage = "kms-plugin.example/kms-plugin:next"
	badImage  = "kms-plugin.example/kms-plugin:bad"
)

func archive(name string) string { return filepath.Join(node.Dir(), name+".tar") }

// imageOf is where `make image` has put an image.
func imageOf(name string) string { return filepath.Join(node.Dir(), name, "kms-plugin-image.tar") }

// prepare makes the programs and the images, as files of the run's directory.
func prepare(ctx context.Context, dir string, bin controlplane.Bin) error {
	if err := os.Mkdir(binDir(dir), 0o755); err != nil {
		return err
	}
	pause, other := filepath.Join(dir, "pause"), filepath.Join(dir, "otherkms")
	_, plugin := controlplane.BuildPlugin(ctx, os.Stderr, binDir(dir)) // doctor is run from it
	_, kmsctl := controlplane.BuildKmsctl(ctx, os.Stderr, binDir(dir))
	if err := errors.Join(plugin, kmsctl,
		controlplane.BuildProgram(ctx, os.Stderr, pause, "./test/node/pause"),
		controlplane.BuildProgram(ctx, os.Stderr, other, "./test/node/otherkms"),
		makeImage(ctx, filepath.Join(dir, "good"), ""),
		makeImage(ctx, filepath.Join(dir, "next"), "-version next -platforms "+runtime.GOARCH+" -ref "+nextImage)); err != nil {
		return err
	}
	for _, p := range []string{bin.Kubelet, bin.Kubeadm, bin.Kubectl} {
		if err := os.Symlink(p, filepath.Join(binDir(dir), filepath.Base(p))); err != nil {
			return err
		}
	}
	for name, images := range map[string][]node.Image{
		"kubernetes": node.KubernetesImages(bin, pause),
		"other":      {{Ref: otherImage, Programs: []string{other}}},
		// etcdctl does not know kms-plugin's arguments: it starts and ends.
		"bad": {{Ref: badImage, Programs: []string{bin.Etcdctl}}},
	} {
		if err := node.WriteImages(filepath.Join(dir, name+".tar"), images...); err != nil {
			return err
		}
	}
	return nil
}

func makeImage(ctx context.Context, out, flags string) error {
	fmt.Fprintln(os.Stderr, "make image")
	text, err := exec.CommandContext(ctx, "make", "-C", controlplane.Root(), "image", "IMAGE_FLAGS=-out "+out+" "+flags).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make image: %w\n%s", err, text)
	}
	return nil
}
