package harden

import (
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// resolver are the files that Go's resolver looks at again and again.
var resolver = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"}

// shared are directories with things of others in them: a file there is opened
// by itself alone, not with its neighbours.
var shared = []string{"/", "/dev", "/etc", "/etc/kubernetes", "/etc/kubernetes/pki", "/etc/ssl", "/etc/ssl/certs", "/home", "/mnt", "/opt", "/proc", "/root", "/run", "/srv",
	"/sys", "/tmp", "/usr", "/usr/local", "/usr/local/etc", "/var", "/var/lib", "/var/log", "/var/run", "/var/tmp"}

const (
	readFile = landlock.AccessFSSet(ll.AccessFSReadFile)
	readDir  = landlock.AccessFSSet(ll.AccessFSReadFile | ll.AccessFSReadDir)
	writeDir = readDir | landlock.AccessFSSet(ll.AccessFSWriteFile|ll.AccessFSTruncate|ll.AccessFSMakeReg|ll.AccessFSRemoveFile)
	remove   = landlock.AccessFSSet(ll.AccessFSRemoveFile)
)

// wholeABI is the first Landlock with all that is asked for here: files,
// truncation, devices, TCP listeners, signals and abstract sockets.
const wholeABI = 6

// handled is what Landlock decides from now on. TCP connections are not among
// it: the ports of KMS, proxies and metadata services are the operator's.
func handled() landlock.Config {
	return landlock.MustConfig(landlock.V9.HandledAccessFS, landlock.AccessNetSet(ll.AccessNetBindTCP), landlock.V6.Scoped).BestEffort()
}

// preload reads what Go reads once and late: the system's roots and time zone.
func preload() {
	_, _ = x509.SystemCertPool() // a system without roots is no matter of ours
	_ = time.Now().Local().String()
}

// pinned keeps the entry of this process in /proc from leaving the kernel's
// cache: a new one would be another file to Landlock.
var pinned []int

func (r *Result) confine(p Policy) Measure {
	if p.Files == Off {
		return Measure{Name: MeasureFiles, State: Loosened}
	}
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return Measure{MeasureFiles, Unsupported, "the kernel has no Landlock, or it is not switched on (lsm= of the kernel's command line)"}
	}
	fd, err := unix.Open("/proc/self", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		pinned = append(pinned, fd)
	}
	if err := handled().Restrict(r.rules(p)...); err != nil {
		return failed(MeasureFiles, err)
	}
	r.confined = true
	for _, dir := range slices.Concat(p.Writable, p.Removing) {
		if slices.Contains(shared, filepath.Clean(dir)) {
			return Measure{MeasureFiles, Partial, fmt.Sprintf("files of others in %s can be removed by this process: give what lies there a directory of its own", dir)}
		}
	}
	if abi < wholeABI {
		return Measure{MeasureFiles, Partial, fmt.Sprintf("the kernel has Landlock ABI %d, %d is needed for all of it", abi, wholeABI)}
	}
	m := Measure{Name: MeasureFiles, State: Enforced}
	if path := resolver[0]; Loses(path, p.Readable) {
		m.Detail = path + " is a plain file: if it is replaced by renaming, the new one does not open here until a restart"
	}
	return m
}

// Loses says whether a file that is replaced by renaming would not open any more: it
// lies itself in a directory with things of others, which is not among the readable.
// What is mounted there, as in a container, is not replaced by renaming.
func Loses(path string, readable []string) bool {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st) != nil || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return false
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil || own(resolved) != resolved {
		return false
	}
	for _, r := range readable {
		for _, place := range places(r) {
			if strings.HasPrefix(filepath.Dir(resolved)+"/", strings.TrimSuffix(own(place), "/")+"/") {
				return false
			}
		}
	}
	return true
}

// rules are also noted, for Opens.
func (r *Result) rules(p Policy) (rules []landlock.Rule) {
	allow := func(access landlock.AccessFSSet, path string) {
		resolved, err := filepath.EvalSymlinks(path)
		if err != nil {
			return // what is not there cannot be allowed, and may never come
		}
		if info, err := os.Stat(resolved); err == nil && !info.IsDir() {
			access &= landlock.AccessFSSet(ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSTruncate)
		}
		rules = append(rules, landlock.PathAccess(access, resolved).IgnoreIfMissing())
		if access&readFile != 0 {
			r.allowed = append(r.allowed, resolved)
		}
	}
	for _, path := range slices.Concat(resolver, p.Readable) {
		for _, place := range places(path) {
			allow(readDir, own(place))
		}
	}
	for _, path := range resolver {
		if opens(path) {
			r.watched = append(r.watched, path)
		}
	}
	for _, dir := range p.Writable {
		if _, err := os.Stat(dir); err != nil {
			r.watched = append(r.watched, dir)
		}
		allow(writeDir, dir)
	}
	for _, dir := range p.Removing {
		allow(remove, dir)
	}
	allow(readDir|landlock.AccessFSSet(ll.AccessFSWriteFile), "/dev/null")
	allow(readFile, "/dev/urandom")
	allow(readDir, "/proc/self")  // counted by the metrics of the process
	allow(readFile, "/proc/stat") // when the machine was started, and so this process
	return rules
}

// own is the directory of a file if it is its own, else the file.
func own(path string) string {
	if dir := filepath.Dir(path); !slices.Contains(shared, dir) {
		return dir
	}
	return path
}

func opens(path string) bool {
	f, err := os.Open(path)
	if err == nil {
		_ = f.Close()
	}
	return err == nil
}
