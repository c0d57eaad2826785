package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/test/fakekms"
)

// A credential_process is started for a daemon that may start nothing itself, again
// for each renewal; and when who starts it is gone, the daemon serves on and says so.
func TestCredentialProcessOfAHardenedDaemon(t *testing.T) {
	cloud, err := fakekms.Start(fakekms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	arn := cloud.CreateKey("eu-west-1", fakekms.KeyOptions{})
	s := &served{t: t}
	s.place()
	// It reads a file and starts a program, which the daemon may not.
	write := func(path, data string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(data), mode), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	write(s.dir+"/elsewhere/helper", "#!/bin/sh\ncat "+s.dir+"/elsewhere/answer\necho x >> "+s.dir+"/elsewhere/runs\n", 0o700)
	give := func(life time.Duration) {
		t.Helper()
		cloud.SetCredentials("default", life, false)
		answer, err := cloud.ProcessAnswer("default")
		if err != nil {
			t.Fatal(err)
		}
		write(s.dir+"/elsewhere/answer", answer, 0o600)
	}
	give(12 * time.Second)
	write(s.dir+"/conf/aws", "[default]\ncredential_process = "+s.dir+"/elsewhere/helper\n", 0o600)
	s.environment = []string{"AWS_CONFIG_FILE=" + s.dir + "/conf/aws", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "PATH=/usr/bin:/bin"}
	s.keys = fmt.Sprintf("- {name: k, role: write, awskms: {keyARN: %q, endpoint: %q}}\n", arn, cloud.URL())
	s.write("probe: {interval: 200ms}\n")
	s.start()
	if text := s.metrics(); !strings.Contains(text, `kms_plugin_hardening_info{measure="files",state="enforced"} 1`) && !strings.Contains(text, `measure="files",state="partial"`) ||
		!strings.Contains(text, `kms_plugin_hardening_info{measure="syscalls",state="enforced"} 1`) {
		t.Errorf("the daemon is not confined:\n%s", text)
	}
	give(time.Hour)
	wait(t, "a second credential", func() bool {
		b, err := os.ReadFile(s.dir + "/elsewhere/runs")
		return err == nil && len(b) >= 4 && !strings.Contains(s.metrics(), `kms_plugin_credential_renewal_failing{key="k"} 1`)
	})

	broker := child(t, s.cmd.Process.Pid)
	if err := syscall.Kill(broker, syscall.SIGHUP); err != nil { // as log rotation does to a whole unit
		t.Fatal(err)
	}
	before := runs(t, s)
	cloud.ExpireCredentials("default")
	give(time.Hour)
	wait(t, "a credential after SIGHUP", func() bool { return runs(t, s) > before })
	if err := syscall.Kill(broker, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cloud.ExpireCredentials("default")
	s.until("has ended; restart kms-plugin")
	if _, err := s.kms().Encrypt(t.Context(), &kmsapi.EncryptRequest{Uid: "u", Plaintext: make([]byte, 32)}); err != nil {
		t.Errorf("the daemon does not seal any more: %v", err)
	}
	if err := s.stop(); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	if strings.Contains(s.log.String(), "permission denied") || strings.Contains(s.log.String(), "not permitted") {
		t.Errorf("the hardening got in the way:\n%s", s.log.String())
	}
}

// The broker ends with its daemon, also one that is killed.
func TestBrokerEndsWithItsDaemon(t *testing.T) {
	s := &served{t: t}
	s.place()
	if err := os.WriteFile(s.dir+"/conf/aws", []byte("[default]\ncredential_process = /nonexistent\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.environment = []string{"AWS_CONFIG_FILE=" + s.dir + "/conf/aws", "AWS_SHARED_CREDENTIALS_FILE=/dev/null"}
	s.keys = "- {name: k, role: write, awskms: {keyARN: arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab, endpoint: 'http://127.0.0.1:1'}}\n"
	s.write("")
	s.run()
	t.Cleanup(func() { _ = s.stop() })
	s.until(`"msg":"serving"`)
	pid := child(t, s.cmd.Process.Pid)
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.stop()
	wait(t, "the end of the broker", func() bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// runs counts how often the program was started.
func runs(t *testing.T, s *served) int {
	t.Helper()
	b, err := os.ReadFile(s.dir + "/elsewhere/runs")
	if err != nil {
		t.Fatal(err)
	}
	return len(b) / 2
}

// child is the one child process of a process.
func child(t *testing.T, pid int) int {
	t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it ended
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(f) > 1 && f[1] == strconv.Itoa(pid) {
			return n
		}
	}
	t.Fatalf("process %d has no child", pid)
	return 0
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come", what)
		}
	}
}
