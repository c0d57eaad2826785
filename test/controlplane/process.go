package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// process is a program that is started, stopped and started again. It dies with
// this process.
type process struct {
	name string
	path string
	args []string
	env  []string
	log  string

	cmd  *exec.Cmd
	done chan struct{}
}

func (p *process) start() error {
	f, err := os.OpenFile(p.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	p.cmd = exec.Command(p.path, p.args...)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.env, f, f
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := startPinned(p.cmd); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // how it ended is in its log
		close(done)
	}(p.cmd, p.done)
	return nil
}

// apart has the program run in namespaces of its own (unshare(1)), after a line of sh.
func (p *process) apart(flags, prepare string) {
	p.args = append([]string{flags, "sh", "-ec", prepare + `; exec "$@"`, "sh", p.path}, p.args...)
	p.path = "unshare"
}

// startPinned starts on a thread that lives as long as this process: Pdeathsig
// is of the thread that forked (prctl(2)).
func startPinned(cmd *exec.Cmd) error {
	answer := make(chan error)
	starts <- func() { answer <- cmd.Start() }
	return <-answer
}

var starts = func() chan func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range c {
			f()
		}
	}()
	return c
}()

func (p *process) signal(s syscall.Signal, patience time.Duration) error {
	if p.cmd == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(s) // it may have ended by itself
	select {
	case <-p.done:
		p.cmd = nil
		return nil
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.done
		p.cmd = nil
		return fmt.Errorf("%s did not stop within %s", p.name, patience)
	}
}

// Stop ends it by SIGTERM.
func (p *process) Stop() error { return p.signal(syscall.SIGTERM, 90*time.Second) }

// Kill ends it by SIGKILL.
func (p *process) Kill() error { return p.signal(syscall.SIGKILL, 10*time.Second) }

// PID is the number of the running process, 0 if it does not run.
func (p *process) PID() int {
	if !p.Alive() {
		return 0
	}
	return p.cmd.Process.Pid
}

// Alive says whether it runs.
func (p *process) Alive() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Log is all it printed.
func (p *process) Log() string {
	b, _ := os.ReadFile(p.log) // no log is an empty one
	return string(b)
}

// Tail is the end of its log.
func (p *process) Tail() string {
	lines := bytes.Split(bytes.TrimSpace([]byte(p.Log())), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-15):], []byte("\n")))
}

// freePorts asks the kernel for ports that nobody has.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// Poll calls until it returns nil or ctx ends; then the last error is returned.
func Poll(ctx context.Context, every time.Duration, f func(context.Context) error) error {
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		timer := time.NewTimer(every)
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(err, ctx.Err())
		case <-timer.C:
		}
	}
}

func logPath(dir, name string) string { return filepath.Join(dir, name+".log") }

// plainEnv is the environment of child processes: nothing of AWS, no proxy.
func plainEnv(extra ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, extra...)
}
