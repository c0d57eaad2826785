//go:build e2e

// Package chaos breaks what stands around a running cluster, in every way and at
// every bad moment, and counts what the clients of its API servers saw. The table of
// docs/failure-modes.md is printed by it.
//
// CHAOS=all runs every cell of the matrix and not only some; CHAOS_REPORT names the
// document whose tables are to be replaced.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"kms-plugin.io/test/controlplane"
)

var bin controlplane.Bin

// apartVariable marks the process that has a mount namespace of its own.
const apartVariable = "KMS_CHAOS_APART"

// TestMain runs the tests in a mount namespace where that can be had: full disks are
// small file systems, and a resolver that is gone is a file mounted over that of the machine.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv(apartVariable) == "" {
		os.Exit(again())
	}
	os.Exit(run(m))
}

func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), apartVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(1, exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func run(m *testing.M) int {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "kms-chaos-bin")
	if err == nil {
		defer os.RemoveAll(dir)
		bin, err = controlplane.BuildAll(ctx, os.Stderr, dir)
	}
	if err == nil {
		err = names.mount(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// apart says whether this process may mount what it likes.
func apart() bool { return os.Getenv(apartVariable) != "" }

// kmsName is the name of the KMS where names can be taken away.
const kmsName = "kms.chaos.test"

// resolver is what the machine knows of names, as far as the plugins can see.
type resolver struct{ hosts string }

var names resolver

// mount puts our files over those of the machine. The name server named in them does
// not exist.
func (r *resolver) mount(dir string) error {
	if !apart() {
		return nil
	}
	r.hosts = filepath.Join(dir, "hosts")
	resolv := filepath.Join(dir, "resolv.conf")
	return errors.Join(r.back(), os.WriteFile(resolv, []byte("nameserver 127.7.7.7\noptions timeout:1 attempts:1\n"), 0o644),
		syscall.Mount(r.hosts, "/etc/hosts", "", syscall.MS_BIND, ""), syscall.Mount(resolv, "/etc/resolv.conf", "", syscall.MS_BIND, ""))
}

// gone takes the name of the KMS away.
func (r *resolver) gone() error { return os.WriteFile(r.hosts, []byte("127.0.0.1 localhost\n"), 0o644) }

// back gives it back.
func (r *resolver) back() error {
	return os.WriteFile(r.hosts, []byte("127.0.0.1 localhost "+kmsName+"\n"), 0o644)
}
