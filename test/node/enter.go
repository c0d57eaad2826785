// Package node makes machines out of namespaces of this one, on which a real
// kubeadm, kubelet and containerd run: a whole control plane, several nodes, a
// network between them. A program that uses it runs itself again inside
// namespaces (Enter), so that all of it is gone when that process is gone, however
// it ends, and nothing of the host is changed. It must not know what is tested.
//
// It needs root, cgroup v1 (a node on cgroup v2 is not written) and the packages
// of Packages.
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

const (
	insideEnv = "KMS_PLUGIN_NODE_DIR"
	mark      = "kms-e2e-node." // with the pid: of directories and cgroups
)

// Dir is where everything of a run lives; "" outside of the namespaces.
func Dir() string { return os.Getenv(insideEnv) }

// NewDir makes the directory of this run, and removes what runs left that were
// killed before they could.
func NewDir() (string, error) {
	if os.Getuid() != 0 {
		return "", errors.New("namespaces, mounts and cgroups need root")
	}
	removeStale()
	dir := filepath.Join(os.TempDir(), mark+strconv.Itoa(os.Getpid()))
	return dir, os.Mkdir(dir, 0o755)
}

// Enter runs this program again, with the same arguments, as process 1 of new
// namespaces, returns its exit code and removes the directory and the cgroups.
func Enter(dir string) (int, error) {
	defer func() {
		removeCgroups(filepath.Base(dir))
		_ = os.RemoveAll(dir) // the next run tries again
	}()
	// Pdeathsig is of the thread that forks: it must live as long as we do.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// settle is the first thing inside: mounts that nobody else sees, our own /proc.
func settle() error {
	return errors.Join(
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount("proc", "/proc", "proc", 0, ""),
		ip("link", "set", "lo", "up"))
}

func ip(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func removeStale() {
	var left []string
	for _, pattern := range []string{filepath.Join(os.TempDir(), mark+"*"), "/sys/fs/cgroup/*/" + mark + "*"} {
		found, _ := filepath.Glob(pattern) // the patterns are well-formed
		left = append(left, found...)
	}
	for _, path := range left {
		name := filepath.Base(path)
		if _, err := os.Stat("/proc/" + strings.TrimPrefix(name, mark)); err == nil {
			continue // that run is alive
		}
		removeCgroups(name)
		_ = os.RemoveAll(filepath.Join(os.TempDir(), name)) // the next run tries again
	}
}
