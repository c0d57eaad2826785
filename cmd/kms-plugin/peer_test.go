package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"kms-plugin.io/test/lack"
)

// peerEnv makes the test binary be a peer of the socket it names.
const peerEnv = "KMS_PLUGIN_TEST_PEER"

// dialAsPeer says what a server does with a connection.
func dialAsPeer(path string) {
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if b, err := io.ReadAll(c); len(b) == 0 && (err == nil || errors.Is(err, syscall.ECONNRESET)) {
		fmt.Println("closed")
	}
}

// peer is a process of another user that dials a socket; dir is one that it reaches.
func peer(t *testing.T, dir, socket string, uid int) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), programFor(t, dir))
	c.Env, c.Dir, c.SysProcAttr = []string{peerEnv + "=" + socket}, "/", as(uid)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("peer of uid %d: %v\n%s", uid, err, out)
	}
	return string(out)
}

func as(uid int) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
}

// programFor is a copy of this binary that any user may start who reaches dir.
func programFor(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "program")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	data, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(path, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// A process of another uid reaches the socket of a real daemon, whose modes were
// opened on purpose: it is sent away, and log, metric and audit log say so.
func TestPeerOfAnotherUIDIsTold(t *testing.T) {
	if os.Geteuid() != 0 {
		lack.Skip(t, "only root can start a child as another user")
	}
	s := newServed(t, "")
	for _, path := range []string{s.dir, s.dir + "/run", s.dir + "/run/s"} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if out := peer(t, s.dir, s.dir+"/run/s", 65533); !strings.Contains(out, "closed") {
		t.Fatalf("the peer: %s", out)
	}
	s.until(`"msg":"peer refused","uid":65533`)
	s.until("add its uid to socket.allowedUIDs")
	if text := s.metrics(); !strings.Contains(text, "kms_plugin_refused_peers_total 1") {
		t.Errorf("the metric does not count it:\n%s", text)
	}
	_ = s.stop()
	log, err := os.ReadFile(s.dir + "/log/audit")
	if err != nil || !strings.Contains(string(log), `"op":"connect"`) || !strings.Contains(string(log), "uid 65533") {
		t.Errorf("the audit log does not hold it: %v\n%s", err, log)
	}
}
