package doctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	grpcstatus "google.golang.org/grpc/status"

	"kms-plugin.io/internal/kmsclient"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/unixsocket"
)

func (d *doctor) stateDir(context.Context) preflight.Result {
	dir := d.config.StateDir
	info, err := os.Stat(dir)
	remedy := "install -d -m 0700 " + dir
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return preflight.Fail(remedy, "directory %s is not there", dir)
	case err != nil:
		return preflight.Fail(remedy, "%v", err)
	case !info.IsDir():
		return preflight.Fail(remedy, "%s is not a directory", dir)
	case info.Mode().Perm()&0o022 != 0:
		return preflight.Fail("chmod go-w "+dir, "others can write directory %s (mode %#o), and plant a key there", dir, info.Mode().Perm())
	}
	return preflight.Pass("%s, mode %#o", dir, info.Mode().Perm())
}

func (d *doctor) socketDirectory(context.Context) preflight.Result {
	if err := unixsocket.CheckDirectory(d.config.Socket.Path); err != nil {
		return preflight.Fail(preflight.HintOf(err, ""), "%v (seen as uid %d)", err, os.Geteuid())
	}
	return preflight.Pass("the directory of %s can be written by its owner alone", d.config.Socket.Path)
}

func (d *doctor) socket(ctx context.Context) preflight.Result {
	return Socket(ctx, d.config.Socket.Path)
}

// Socket asks a plugin what kube-apiserver asks it.
func Socket(ctx context.Context, path string) preflight.Result {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return preflight.Warn("start kms-plugin, before kube-apiserver needs it", "there is no socket %s: no plugin runs", path)
	case err != nil:
		return preflight.Fail("run it as root", "%v", err)
	case info.Mode().Type() != fs.ModeSocket:
		return preflight.Fail("look at it and move it away: ls -l "+path, "%s is not a socket", path)
	case info.Mode().Perm()&0o077 != 0:
		return preflight.Fail("chmod 0600 "+path, "others may open socket %s (mode %#o), and who opens it can decrypt every Secret", path, info.Mode().Perm())
	}
	c, err := kmsclient.Dial(path)
	if err != nil {
		return preflight.Fail(preflight.HintOf(err, ""), "%v", err)
	}
	defer c.Close()
	s, err := c.Status(ctx)
	var h interface{ Hint() string }
	switch {
	case errors.As(err, &h): // nobody there
		return preflight.Warn("start kms-plugin, which replaces the dead file", "socket %s is dead: nobody serves it", path)
	case err != nil:
		st := grpcstatus.Convert(err)
		return preflight.Fail("kmsctl status --metrics HOST:PORT, and the log of the plugin", "the plugin answers Status with %s: %s", st.Code(), st.Message())
	case s.GetVersion() != "v2" || s.GetHealthz() != "ok" || s.GetKeyId() == "":
		return preflight.Fail("the log of the plugin says why", "the plugin answers version %q, healthz %q, key_id %q", s.GetVersion(), s.GetHealthz(), s.GetKeyId())
	}
	return preflight.Pass("a plugin serves %s, key_id %s", path, s.GetKeyId())
}

// process looks from outside at the process that serves the socket.
func (d *doctor) process(context.Context) preflight.Result {
	peer, err := unixsocket.Server(d.config.Socket.Path)
	if err != nil {
		return preflight.Skip("no plugin runs")
	}
	if peer.PID <= 1 {
		return preflight.Skip("systemd, or another pid namespace, holds the socket: the process behind it cannot be told")
	}
	dir := "/proc/" + strconv.Itoa(int(peer.PID))
	status, err := os.ReadFile(dir + "/status")
	limits, lerr := os.ReadFile(dir + "/limits")
	if err = errors.Join(err, lerr); err != nil {
		return preflight.Skip("process %d cannot be looked at: %v", peer.PID, err)
	}
	return confinement(int(peer.PID), peer.UID, string(status), string(limits), dumpable(dir, peer.UID))
}

// dumpable: of a process that is not, the files below /proc belong to root
// (proc(5)). Of a process of root it cannot be told.
func dumpable(dir string, uid uint32) bool {
	info, err := os.Stat(dir + "/environ")
	if err != nil || uid == 0 {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Uid == uid
}

func confinement(pid int, uid uint32, status, limits string, dumpable bool) preflight.Result {
	f := fields(status)
	said := fmt.Sprintf("process %d, uid %d: no_new_privs %s, seccomp %s, capabilities %s", pid, uid, onOff(f["NoNewPrivs"]), onOff(f["Seccomp"]), f["CapEff"])
	switch {
	case !noCore(limits):
		return preflight.Fail("it should be started by kms-plugin serve, which forbids them", "process %d may leave a core file, with every local KEK in it", pid)
	case dumpable:
		return preflight.Fail("it should be started by kms-plugin serve, which forbids it", "process %d lets other processes of uid %d read its memory", pid, uid)
	case f["NoNewPrivs"] != "1":
		return preflight.Warn("NoNewPrivileges=yes in the unit, or allowPrivilegeEscalation: false in the pod", "%s; no core files", said)
	case !noCapabilities(f["CapEff"]):
		return preflight.Warn("CapabilityBoundingSet= in the unit, or capabilities: {drop: [ALL]} in the pod", "%s; no core files", said)
	}
	return preflight.Pass("%s; no core files", said)
}

// noCapabilities: all that may be left is CAP_IPC_LOCK, which keeps memory out of swap.
func noCapabilities(mask string) bool {
	n, err := strconv.ParseUint(mask, 16, 64)
	return err == nil && n&^(1<<unix.CAP_IPC_LOCK) == 0
}

// noCore reads the soft limit of /proc/<pid>/limits.
func noCore(limits string) bool {
	for l := range strings.Lines(limits) {
		if rest, ok := strings.CutPrefix(l, "Max core file size"); ok {
			f := strings.Fields(rest)
			return len(f) > 0 && f[0] == "0"
		}
	}
	return false
}

func fields(status string) map[string]string {
	out := map[string]string{}
	s := bufio.NewScanner(bytes.NewReader([]byte(status)))
	for s.Scan() {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok {
			out[name] = strings.TrimSpace(value)
		}
	}
	return out
}

func onOff(v string) string {
	if v == "" || v == "0" {
		return "off"
	}
	return "on"
}
