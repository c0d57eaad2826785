package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
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
	exe := s.dir + "/peer"
	data, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(exe, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	peer := exec.CommandContext(t.Context(), exe)
	peer.Env, peer.Dir = []string{peerEnv + "=" + s.dir + "/run/s"}, "/"
	peer.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
	if out, err := peer.CombinedOutput(); err != nil || !strings.Contains(string(out), "closed") {
		t.Fatalf("the peer: %v\n%s", err, out)
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
