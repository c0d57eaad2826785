package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/pkg/keys/localfile"
	"kms-plugin.io/test/lack"
)

// The user of the daemon, and one that is neither it nor the API server.
const (
	daemonUID   = 65533
	strangerUID = 65532
)

func allowedUIDs(uids []uint32) string {
	if uids == nil {
		return ""
	}
	return ", allowedUIDs: " + strings.ReplaceAll(fmt.Sprint(uids), " ", ", ")
}

// As another user than root the daemon serves an API server that runs as root, and
// nobody else, on a socket of its own. The list decides, not who is root.
func TestServesAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		lack.Skip(t, "only root can start a daemon as another user")
	}
	for name, tc := range map[string]struct {
		allowed      []uint32
		root, others bool
	}{
		"root allowed":     {[]uint32{0}, true, false},
		"stranger allowed": {[]uint32{strangerUID}, false, true},
	} {
		s := &served{t: t, uid: daemonUID, allowed: tc.allowed}
		s.place()
		s.keys = localKey(s.dir + "/conf/k")
		if err := localfile.Create(s.dir + "/conf/k"); err != nil {
			t.Fatal(err)
		}
		s.write("")
		own(t, s.dir)
		s.start()
		mustRunAs(t, s.cmd.Process.Pid, daemonUID)
		if err := roundTrip(t, s.dir+"/run/s"); (err == nil) != tc.root {
			t.Errorf("%s: root is served: %v, want %t", name, err, tc.root)
		}
		if out := peer(t, reachable(t), s.dir+"/run/s", strangerUID); !strings.Contains(out, "permission denied") {
			t.Errorf("%s: a stranger opens the socket: %s", name, out)
		}
		for _, path := range []string{s.dir, s.dir + "/run", s.dir + "/run/s"} { // on purpose
			if err := os.Chmod(path, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		if out := peer(t, s.dir, s.dir+"/run/s", strangerUID); strings.Contains(out, "closed") == tc.others {
			t.Errorf("%s: a stranger is served: %q, want %t", name, out, tc.others)
		}
	}
}

// The same on a socket that systemd, which is root, holds.
func TestServesAsAnotherUserForSystemd(t *testing.T) {
	if os.Geteuid() != 0 {
		lack.Skip(t, "only root can start a daemon as another user")
	}
	m := newManager(t)
	m.uid = daemonUID
	own(t, m.dir)
	if err := os.Chown(m.dir+"/s", 0, 0); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.hears("READY=1")
	m.logs(`"msg":"key_id activated"`)
	mustRunAs(t, m.child.Process.Pid, daemonUID)
	if err := roundTrip(t, m.dir+"/s"); err != nil {
		t.Errorf("root is not served: %v", err)
	}
	if err := os.Chmod(m.dir+"/s", 0o777); err != nil { // the directory has to be the daemon's
		t.Fatal(err)
	}
	if err := os.Chmod(m.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if out := peer(t, m.dir, m.dir+"/s", strangerUID); !strings.Contains(out, "closed") {
		t.Errorf("a stranger is served: %q", out)
	}
	m.logs(fmt.Sprintf(`"msg":"peer refused","uid":%d`, strangerUID))
}

// reachable is a directory that any user can enter.
func reachable(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// own gives the daemon's user all that is in a directory.
func own(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, daemonUID, daemonUID)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func mustRunAs(t *testing.T, pid, uid int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if want := fmt.Sprintf("Uid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\n", uid); err != nil || !strings.Contains(string(status), want) {
		t.Fatalf("the daemon does not run as %d: %v\n%s", uid, err, status)
	}
}

// roundTrip makes the calls of an API server, as who this process is.
func roundTrip(t *testing.T, socket string) error {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, seed := kmsapi.NewKeyManagementServiceClient(conn), strings.Repeat("s", 32)
	s, err := c.Status(t.Context(), &kmsapi.StatusRequest{})
	if err != nil {
		return err
	}
	e, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Uid: "u", Plaintext: []byte(seed)})
	if err != nil {
		return err
	}
	d, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Uid: "u", KeyId: e.KeyId, Ciphertext: e.Ciphertext, Annotations: e.Annotations})
	if err == nil && (string(d.Plaintext) != seed || s.KeyId != e.KeyId || s.Healthz != "ok") {
		err = fmt.Errorf("status %v, opened %q", s, d.Plaintext)
	}
	return err
}
