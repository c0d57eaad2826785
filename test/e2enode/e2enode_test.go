//go:build e2enode

// Package e2enode drives real kubeadm nodes: kubelet, containerd and static pods,
// kms-plugin among them, in namespaces (test/node), with the fake AWS KMS as
// cloud. It asserts through the API, on the bytes in etcd, and on what an operator
// would be told.
package e2enode

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/node"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// lan is the network of all nodes; set inside.
var lan *node.LAN

func run(m *testing.M) int {
	code, err := 0, error(nil)
	if node.Dir() == "" {
		code, err = outside(context.Background())
	} else if lan, err = node.NewLAN(binDir(node.Dir())); err == nil {
		code = m.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2enode:", err)
		return 1
	}
	return code
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

const (
	pluginRepository = node.Repository + "/kms-plugin:"
	goodTag          = "1"
	nextTag          = "2" // the same program
	badTag           = "bad"
)

func archive(name string) string { return filepath.Join(node.Dir(), name+".tar") }

// prepare makes the programs and the images, as files of the run's directory.
func prepare(ctx context.Context, dir string, bin controlplane.Bin) error {
	if err := os.Mkdir(binDir(dir), 0o755); err != nil {
		return err
	}
	pause := filepath.Join(dir, "pause")
	if err := controlplane.BuildProgram(ctx, os.Stderr, pause, "./test/node/pause"); err != nil {
		return err
	}
	plugin, err := controlplane.BuildPlugin(ctx, os.Stderr, dir)
	if err != nil {
		return err
	}
	if _, err := controlplane.BuildKmsctl(ctx, os.Stderr, binDir(dir)); err != nil {
		return err
	}
	for _, p := range []string{bin.Kubelet, bin.Kubeadm, bin.Kubectl} {
		if err := os.Symlink(p, filepath.Join(binDir(dir), filepath.Base(p))); err != nil {
			return err
		}
	}
	for name, images := range map[string][]node.Image{
		"kubernetes": node.KubernetesImages(bin, pause),
		"plugin":     {{Ref: pluginRepository + goodTag, Programs: []string{plugin}}},
		// etcdctl does not know kms-plugin's arguments: it starts and ends.
		"upgrades": {{Ref: pluginRepository + nextTag, Programs: []string{plugin, pause}}, {Ref: pluginRepository + badTag, Programs: []string{bin.Etcdctl}}},
	} {
		if err := node.WriteImages(filepath.Join(dir, name+".tar"), images...); err != nil {
			return err
		}
	}
	return nil
}
