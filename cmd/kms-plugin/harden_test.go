package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/pkg/keys/localfile"
	"kms-plugin.io/test/lack"
)

// served is a running daemon with files of its own: this test binary, started as
// kms-plugin, for a hardened process stays so.
type served struct {
	t           *testing.T
	dir, config string
	keys        string // of the configuration
	environment []string
	uid         int      // 0: that of the test
	allowed     []uint32 // nil: the default
	log         journal
	cmd         *exec.Cmd // nil: stopped
}

func (s *served) write(more string) {
	s.t.Helper()
	data := fmt.Sprintf(`apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: c
socket: {path: %[1]s/run/s%[4]s}
stateDir: %[1]s/state
listenAddress: 127.0.0.1:0
audit: {path: %[1]s/log/audit}
rotation: {readableFor: 0s}
reload: {interval: 100ms}
%[2]skeys:
%[3]s`, s.dir, more, s.keys, allowedUIDs(s.allowed))
	// Replaced by renaming, as careful people and ConfigMaps do.
	if err := errors.Join(os.WriteFile(s.config+".new", []byte(data), 0o600), os.Rename(s.config+".new", s.config)); err != nil {
		s.t.Fatal(err)
	}
}

func newServed(t *testing.T, more string) *served {
	t.Helper()
	s := &served{t: t}
	s.place()
	s.keys = localKey(s.dir + "/conf/k")
	if err := errors.Join(localfile.Create(s.dir+"/conf/k"), localfile.Create(s.dir+"/conf/k2"), localfile.Create(s.dir+"/elsewhere/k3")); err != nil {
		t.Fatal(err)
	}
	s.write(more)
	s.start()
	return s
}

func localKey(path string) string {
	return fmt.Sprintf("- {name: k, role: write, localfile: {path: %s}}\n", path)
}

func (s *served) place() {
	s.t.Helper()
	dir, err := os.MkdirTemp("", "kh")
	if err != nil {
		s.t.Fatal(err)
	}
	s.dir, s.config = dir, dir+"/conf/config.yaml"
	s.t.Cleanup(func() { os.RemoveAll(dir) })
	for _, d := range []string{"run", "state", "log", "conf", "elsewhere"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *served) start() {
	s.t.Helper()
	s.run()
	s.t.Cleanup(func() { _ = s.stop() })
	s.until(`"msg":"key_id activated"`)
}

func (s *served) run() {
	s.t.Helper()
	// By way of a shell, which lets it leave a core file of any size.
	c := exec.CommandContext(context.WithoutCancel(s.t.Context()), "/bin/sh", "-c", `ulimit -c unlimited 2>/dev/null; exec "$0" serve --config "$1"`, os.Args[0], s.config)
	if s.uid != 0 {
		c.Args[3], c.SysProcAttr = programFor(s.t, s.dir), as(s.uid)
	}
	c.Env, c.Stderr, c.Dir = append([]string{asProgram + "=1", "HOME=" + s.dir}, s.environment...), &s.log, s.dir
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = c
}

// restart waits until the local KEK of before is in memory again.
func (s *served) restart() {
	s.t.Helper()
	if err := s.stop(); err != nil {
		s.t.Fatal(err)
	}
	s.run()
	s.until("local KEK taken up again")
}

// until waits for a line of the log.
func (s *served) until(text string) {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(s.log.String(), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("the log does not say %q:\n%s", text, s.log.String())
		}
	}
}

// stop is for the end of a test, or to see how the daemon ends.
func (s *served) stop() error {
	if s.cmd == nil {
		return nil
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	err := s.cmd.Wait()
	s.cmd = nil
	return err
}

func (s *served) metrics() string {
	s.t.Helper()
	m := regexp.MustCompile(`"http":"([^"]+)"`).FindAllStringSubmatch(s.log.String(), -1)
	if m == nil {
		s.t.Fatalf("no address in the log:\n%s", s.log.String())
	}
	resp, err := http.Get("http://" + m[len(m)-1][1] + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// All that the daemon does with files in its life works under its own
// hardening, which is on without a word in the configuration.
func TestServeHardened(t *testing.T) {
	s := newServed(t, "")
	if text := s.metrics(); strings.Count(text, "kms_plugin_hardening_info{") != 5 || !strings.Contains(text, "process_open_fds") || !strings.Contains(text, "process_start_time_seconds") {
		t.Errorf("metrics:\n%s", text)
	}
	if strings.Contains(s.log.String(), `"unsupported`) || strings.Contains(s.log.String(), `"partial`) {
		lack.Skip(t, "this kernel does not take all measures:\n%s", s.log.String())
	}
	if n := strings.Count(s.metrics(), `state="enforced"`); n != 5 {
		t.Errorf("%d measures are enforced, want 5:\n%s", n, s.log.String())
	}

	s.keys = localKey(s.dir+"/conf/k") + "- {name: k2, role: read, localfile: {path: " + s.dir + "/conf/k2}}\n"
	s.write("")
	s.until(`"msg":"configuration reloaded"`)

	s.keys = localKey(s.dir+"/conf/k") + "- {name: k3, role: read, localfile: {path: " + s.dir + "/elsewhere/k3}}\n"
	s.write("")
	s.until("is outside of what this process may still open")
	s.until("restart kms-plugin for it")
	if strings.Contains(s.log.String(), "permission denied") {
		t.Errorf("a path outside shows as something else:\n%s", s.log.String())
	}

	if err := errors.Join(os.Rename(s.dir+"/log/audit", s.dir+"/log/audit.1"), s.cmd.Process.Signal(syscall.SIGHUP)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(s.dir + "/log/audit"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the audit log was not opened again:\n%s", s.log.String())
		}
	}
	if err := s.stop(); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	if _, err := os.Lstat(s.dir + "/run/s"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	for _, there := range []string{"state/state.json", "state/last-good.yaml"} {
		if _, err := os.Stat(filepath.Join(s.dir, there)); err != nil {
			t.Error(err)
		}
	}
	if strings.Contains(s.log.String(), "permission denied") || strings.Contains(s.log.String(), "not permitted") {
		t.Errorf("the hardening got in the way:\n%s", s.log.String())
	}
}

// Loosened, it says so, and a reload may name any path.
func TestServeLoosened(t *testing.T) {
	const loose = "hardening: {dump: off, memory: off, privileges: off, syscalls: off, files: off}\n"
	s := newServed(t, loose)
	if n := strings.Count(s.metrics(), `state="off"`); n != 5 {
		t.Errorf("%d measures are off, want 5:\n%s", n, s.log.String())
	}
	s.keys += "- {name: k3, role: read, localfile: {path: " + s.dir + "/elsewhere/k3}}\n"
	s.write(loose)
	s.until(`"msg":"configuration reloaded"`)
	if code := cli.ExitCode(s.stop()); code != cli.ExitOK {
		t.Errorf("the daemon ended with code %d", code)
	}
}

// A state directory that is made after the start does not open any more: said, for
// "permission denied" alone would send people to look at modes.
func TestStateDirectoryMadeTooLate(t *testing.T) {
	s := &served{t: t}
	s.place()
	s.keys = localKey(s.dir + "/conf/k")
	if err := errors.Join(localfile.Create(s.dir+"/conf/k"), os.Remove(s.dir+"/state")); err != nil {
		t.Fatal(err)
	}
	s.write("")
	s.start()
	if err := os.Mkdir(s.dir+"/state", 0o700); err != nil {
		t.Fatal(err)
	}
	s.until("it was replaced or made after the start")
	s.until("restart kms-plugin for it")
	if text := s.metrics(); !strings.Contains(text, "\nkms_plugin_files_out_of_reach 1\n") {
		t.Errorf("the metric does not say so: %s", text)
	}
}
