package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// child is a program that ran to its end.
type child struct {
	took time.Duration
	peak float64 // MiB resident at most, as the kernel counts it: getrusage(2)
}

// runChild runs it with its output thrown away, or written to out.
func runChild(ctx context.Context, out io.Writer, name string, args ...string) (child, error) {
	runtime.LockOSThread() // Pdeathsig is of the thread that forked (prctl(2))
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, name, args...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")} // no ETCDCTL_…
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begun := time.Now()
	if err := cmd.Run(); err != nil {
		return child{}, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(log.Bytes()))
	}
	took := time.Since(begun)
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage) // what wait4(2) gives on Linux
	return child{took, float64(usage.Maxrss) / 1024}, nil
}
