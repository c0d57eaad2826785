package node

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed init.sh
var initScript []byte

const (
	bootTime = time.Minute      // until containerd answers
	killTime = 30 * time.Second // until the kernel has ended all processes
)

// Node is one machine. Its disk outlives its processes.
type Node struct {
	Name string
	IP   string

	lan   *LAN
	dir   string
	boots int
	cmd   *exec.Cmd
	done  chan struct{}
}

// NewNode prepares a machine; Boot starts it.
func (l *LAN) NewNode(name string) (*Node, error) {
	n := &Node{Name: name, IP: l.nextIP(), lan: l, dir: filepath.Join(l.dir, name)}
	if err := os.Mkdir(n.dir, 0o755); err != nil {
		return nil, err
	}
	return n, os.WriteFile(filepath.Join(n.dir, "init.sh"), initScript, 0o755)
}

// dirs are the directories of the node that are seen from here.
var dirs = map[string]string{
	"/etc/kubernetes":     "kubernetes",
	"/etc/kms-plugin":     "kms-plugin",
	"/var/lib/kms-plugin": "state",
	"/var/log/kms-plugin": "audit",
	"/var/log/pods":       "pods",
	"/var/lib/kubelet":    "kubelet",
}

// Path is where a file of the node is for this process, whether the node runs or
// not: one below /etc/kubernetes, /etc/kms-plugin, /var/lib/kubelet, the plugin's
// state and audit directories, or the logs of pods.
func (n *Node) Path(path string) string {
	for at, dir := range dirs {
		if rest, ok := strings.CutPrefix(path, at); ok {
			return filepath.Join(n.dir, dir, rest)
		}
	}
	panic("a path that no test sees: " + path)
}

// Write replaces a file of the node, as an editor does.
func (n *Node) Write(path string, data string) error {
	to := n.Path(path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	part := filepath.Join(n.dir, "part") // kubelet reads every file of its directory
	if err := os.WriteFile(part, []byte(data), 0o600); err != nil {
		return err
	}
	return os.Rename(part, to)
}

// Boot starts the machine and waits until its containerd answers.
func (n *Node) Boot(ctx context.Context) error {
	n.boots++
	cgroup := fmt.Sprintf("%s/%s.%d", filepath.Base(n.lan.dir), n.Name, n.boots)
	if err := makeCgroups(cgroup); err != nil {
		return err
	}
	if err := n.start(cgroup); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	if err := n.lan.attach(n.Name, n.cmd.Process.Pid); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	for {
		out, err := n.Run(ctx, "ctr", "version")
		if err == nil {
			return nil
		}
		select {
		case <-n.done:
			return fmt.Errorf("node %s ended while it started:\n%s", n.Name, n.Log("init"))
		case <-ctx.Done():
			return fmt.Errorf("node %s: containerd does not answer: %s\n%s", n.Name, out, n.Log("containerd"))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (n *Node) start(cgroup string) error {
	log, err := os.OpenFile(filepath.Join(n.dir, "init.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("/bin/bash", filepath.Join(n.dir, "init.sh"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = []string{"NODE_DIR=" + n.dir, "NODE_NAME=" + n.Name, "NODE_IP=" + n.IP, "NODE_GATEWAY=" + Gateway, "NODE_CGROUP=" + cgroup, "NODE_PATH=" + n.lan.path, "PATH=" + n.lan.path}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd, n.done = cmd, make(chan struct{})
	go func(done chan struct{}) {
		_ = cmd.Wait() // how it ended is in its log
		close(done)
	}(n.done)
	return nil
}

// Kill ends all processes of the machine at once, as a power cut does to them.
// What they wrote to files stays, flushed or not.
func (n *Node) Kill() error {
	if n.cmd == nil {
		return nil
	}
	_ = n.cmd.Process.Kill() // process 1: the kernel ends the others with it
	select {
	case <-n.done:
	case <-time.After(killTime):
		return fmt.Errorf("node %s does not end", n.Name)
	}
	n.cmd = nil
	removeCgroups(fmt.Sprintf("%s/%s.%d", filepath.Base(n.lan.dir), n.Name, n.boots))
	if err := n.lan.detach(n.Name); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return nil
}

// Remove ends the machine for good: its disk is gone.
func (n *Node) Remove() error {
	return errors.Join(n.Kill(), os.RemoveAll(n.dir))
}

// Command prepares a command on the machine.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	ns := []string{"-t", strconv.Itoa(n.cmd.Process.Pid), "-m", "-n", "-p", "-u", "-i", "-C", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(ns, args...)...)
	cmd.Env = []string{"PATH=" + n.lan.path, "HOME=/tmp", "KUBECONFIG=/etc/kubernetes/admin.conf"}
	return cmd
}

// Run runs a command on the machine and returns all it printed.
func (n *Node) Run(ctx context.Context, args ...string) (string, error) {
	out, err := n.Command(ctx, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %s: %w\n%s", n.Name, strings.Join(args, " "), err, tail(out, 30))
	}
	return string(out), err
}

// Import takes the images of an archive into the machine's containerd.
func (n *Node) Import(ctx context.Context, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := n.Command(ctx, "ctr", "-n", "k8s.io", "images", "import", "-")
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: import %s: %w: %s", n.Name, archive, err, out)
	}
	return nil
}

// RemoveImage removes an image under all its names, and its bytes, as the garbage
// collection of kubelet does.
func (n *Node) RemoveImage(ctx context.Context, ref string) error {
	list, err := n.Run(ctx, "ctr", "-n", "k8s.io", "images", "ls")
	if err != nil {
		return err
	}
	names := map[string][]string{} // by digest
	digest := ""
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 2 {
			names[f[2]] = append(names[f[2]], f[0])
			if f[0] == ref {
				digest = f[2]
			}
		}
	}
	if digest == "" {
		return fmt.Errorf("%s: no image %s:\n%s", n.Name, ref, list)
	}
	_, err = n.Run(ctx, append([]string{"ctr", "-n", "k8s.io", "images", "rm", "--sync"}, names[digest]...)...)
	return err
}

// Log is the end of a log of the machine: init, containerd, kubelet.
func (n *Node) Log(name string) string {
	b, err := os.ReadFile(filepath.Join(n.dir, name+".log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	return tail(b, 30)
}

// PodLogs is the end of the logs of a pod's containers, of all their runs.
func (n *Node) PodLogs(pod string) string {
	files, _ := filepath.Glob(n.Path("/var/log/pods") + "/*_" + pod + "*/*/*.log") // the pattern is well-formed
	var b strings.Builder
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // rotated away
		}
		fmt.Fprintf(&b, "== %s\n%s\n", filepath.Base(filepath.Dir(filepath.Dir(f)))+"/"+filepath.Base(f), tail(data, 15))
	}
	return b.String()
}

func tail(data []byte, n int) string {
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-n):], []byte("\n")))
}
