package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kms-plugin.io/test/lack"
)

// holding is how much of a kind may be found: how many secrets, in how many places.
type holding struct{ least, most, places int }

// racing: the race detector has pools drop buffers at random, so that more remains.
// Makefile runs the tests of this file without it too.
func racing() bool {
	b, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(b.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// inMemory bounds what a serving daemon holds a moment after it worked, a little above
// what was ever found (docs/threat-model.md). A regression is far above: seeds were 9
// to 20 of 20 before messages were wiped.
var inMemory = map[string]holding{
	"local KEK":         {0, 0, 0},
	"local KEK in JSON": {0, 0, 0},
	"its sealing key":   {1, 1, 8}, // the least: else the scan does not see what is in use
	"seed":              {0, 2, 2},
	"secret access key": {1, 1, 8},
	"session token":     {1, 1, 1000}, // in each request that the collector has not taken yet; those of earlier lives are gone
}

// atOnce is for what was read, or dumped by a crash, before the connections used their
// buffers again, and the collector came, on a machine that may be busy.
func atOnce() map[string]holding {
	may := maps.Clone(inMemory)
	may["local KEK"], may["local KEK in JSON"] = holding{0, 1, 4}, holding{0, 1, 4}
	may["seed"] = holding{0, 4, 8}
	may["its sealing key"], may["secret access key"] = holding{1, 1, 16}, holding{1, 1, 16}
	return may
}

// within counts secrets in what was the memory of a daemon.
func (found secrets) within(t *testing.T, where string, memory []byte, may map[string]holding) (wrong []string) {
	t.Helper()
	for kind, all := range found {
		n, times := 0, 0
		for _, secret := range all {
			c := bytes.Count(memory, secret)
			n, times = n+min(1, c), times+c
		}
		text := fmt.Sprintf("%s holds %d of %d: %s (%d places)", where, n, len(all), kind, times)
		t.Log(text)
		if kind == "seed" && racing() {
			continue
		}
		if m, ok := may[kind]; !ok || n < m.least || n > m.most || times > m.places {
			wrong = append(wrong, fmt.Sprintf("%s; want %d to %d, in %d places at most", text, m.least, m.most, m.places))
		}
	}
	return wrong
}

// What is in the memory of a serving daemon, and so would be in a core file. It goes on
// probing meanwhile.
func TestMemoryOfADaemon(t *testing.T) {
	if os.Geteuid() != 0 {
		lack.Skip(t, "only root can read the memory of a hardened process")
	}
	s, found := scenario(t, "")
	for _, wrong := range found.within(t, "memory", s.memory(), atOnce()) {
		t.Error(wrong)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		wrong := found.within(t, "memory", s.memory(), inMemory)
		if len(wrong) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(strings.Join(wrong, "\n"))
		}
	}
}

// memory is all that the daemon could write to.
func (s *served) memory() []byte {
	s.t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	defer mem.Close()
	var all []byte
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		part := make([]byte, to-from)
		n, _ := mem.ReadAt(part, from) // a part that cannot be read is not mapped any more
		all = append(append(all, part[:n]...), 0)
	}
	return all
}

// A crash of a daemon that has keys leaves no core file by default. Where the
// operator asked for one, it holds what memory holds, and so the keys in use.
func TestCoreOfADaemon(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil || strings.ContainsAny(string(pattern), "|/%") {
		lack.Skip(t, "core files go to %q here", pattern)
	}
	for name, more := range map[string]string{"default": "", "asked for": "hardening: {dump: off, files: off}\n"} {
		s, found := scenario(t, more)
		_ = s.cmd.Process.Signal(syscall.SIGABRT)
		err := s.cmd.Wait()
		s.cmd = nil
		var e *exec.ExitError
		if !errors.As(err, &e) || !e.Sys().(syscall.WaitStatus).Signaled() {
			t.Fatalf("%s: the daemon ended with %v, want a signal", name, err)
		}
		cores, err := filepath.Glob(filepath.Join(s.dir, "core*"))
		if err != nil || (len(cores) > 0) != (name == "asked for") {
			t.Fatalf("%s: core files %v, %v", name, cores, err)
		}
		for _, core := range cores {
			data, err := os.ReadFile(core)
			if err != nil {
				t.Fatal(err)
			}
			for _, wrong := range found.within(t, fmt.Sprintf("core of %d MiB", len(data)>>20), data, atOnce()) {
				t.Error(wrong)
			}
		}
		found.mustNotBeIn(t, "the trace of the crash", []byte(s.log.String()))
	}
}
