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
	// MiB resident at most, by VmHWM. The maximum of getrusage(2) is no less than that of
	// the process which forked, and this one is large after a herd.
	peak float64
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
	if err := cmd.Start(); err != nil {
		return child{}, fmt.Errorf("%s: %w", name, err)
	}
	ended, peak := make(chan struct{}), make(chan float64)
	go func() { peak <- watchPeak(cmd.Process.Pid, ended) }()
	err := cmd.Wait()
	took := time.Since(begun)
	close(ended)
	most := <-peak
	if err != nil {
		return child{}, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(log.Bytes()))
	}
	return child{took, most}, nil
}

// watchPeak reads the high-water mark of a process until it has ended.
func watchPeak(pid int, ended <-chan struct{}) (peak float64) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
			_, rest, _ := strings.Cut(string(data), "VmHWM:")
			kib := 0.0
			if _, err := fmt.Sscanf(rest, "%g kB", &kib); err == nil {
				peak = max(peak, kib/1024)
			}
		}
		select {
		case <-ended:
			return peak
		case <-tick.C:
		}
	}
}
