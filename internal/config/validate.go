package config

import (
	"crypto/fips140"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"kms-plugin.io/pkg/keys"
)

// maxSocketPath is what struct sockaddr_un holds besides its zero byte (unix(7)).
const maxSocketPath = 107

var clusterID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// checker collects problems with their lines.
type checker struct {
	c   *Config
	out Problems
}

func (k *checker) bad(path, hint, format string, args ...any) {
	k.out = append(k.out, Problem{Line: k.c.Line(path), Path: path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

func validate(c *Config) Problems {
	k := &checker{c: c}
	if c.APIVersion != APIVersion {
		k.bad("apiVersion", "write apiVersion: "+APIVersion, "%q is not a version this release reads", c.APIVersion)
	}
	if c.Kind != Kind {
		k.bad("kind", "write kind: "+Kind, "%q is not the kind of this file", c.Kind)
	}
	if !clusterID.MatchString(c.ClusterID) {
		k.bad("clusterID", "choose a name that no other of your clusters has; it is bound into everything stored and cannot be changed later",
			"%q is not a cluster id: 1 to 63 of A-Z a-z 0-9 . _ -", c.ClusterID)
	}
	k.socket()
	k.absolute("stateDir", c.StateDir)
	k.listen()
	if c.Wrapping != keys.WrapLocalKEK && c.Wrapping != keys.WrapDirect {
		k.bad("wrapping", "local-kek is right unless every DEK seed must appear in the cloud's audit log", "%q is neither local-kek nor direct", c.Wrapping)
	}
	k.suite()
	k.keys()
	k.audit()
	k.times()
	k.hardening()
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		k.bad("logLevel", "", "%q is none of debug, info, warn, error", c.LogLevel)
	}
	return k.out
}

func (k *checker) absolute(path, value string) {
	if !filepath.IsAbs(value) || filepath.Clean(value) != value {
		k.bad(path, "give the full path, without .. or a trailing /", "%q is not a clean absolute path", value)
	}
}

func (k *checker) socket() {
	s := k.c.Socket
	switch {
	case strings.HasPrefix(s.Path, "@"):
		k.bad("socket.path", "use a file such as /run/kms-plugin/kms.sock", "abstract sockets have no file permissions and are not supported")
	case len(s.Path) > maxSocketPath:
		k.bad("socket.path", "choose a shorter directory", "the path has %d bytes, the kernel allows %d", len(s.Path), maxSocketPath)
	default:
		k.absolute("socket.path", s.Path)
	}
	for i, uid := range s.AllowedUIDs {
		if uid == 65534 || uid == 1<<32-1 {
			k.bad(fmt.Sprintf("socket.allowedUIDs[%d]", i), "name the uid that kube-apiserver really has", "uid %d stands for users of other namespaces and must not be allowed", uid)
		}
	}
}

func (k *checker) listen() {
	if k.c.ListenAddress == "" {
		return
	}
	host, port, err := net.SplitHostPort(k.c.ListenAddress)
	n, perr := strconv.Atoi(port)
	if err != nil || perr != nil || n < 0 || n > 65535 {
		k.bad("listenAddress", "it looks like 127.0.0.1:8082", "%q is not host:port", k.c.ListenAddress)
		return
	}
	if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
		k.bad("listenAddress", "use 127.0.0.1 and let a scraper on the node collect the metrics", "%q is not a loopback address, and metrics are not authenticated", host)
	}
}

func (k *checker) keys() {
	c := k.c
	if len(c.Keys) == 0 {
		k.bad("keys", "give at least one key with role: write", "no key is given")
		return
	}
	names, writers := map[string]int{}, 0
	var active bool
	at := map[int64]string{}
	for i, key := range c.Keys {
		path := fmt.Sprintf("keys[%d]", i)
		k.key(path, key)
		if first, twice := names[key.Name]; twice {
			k.bad(path+".name", "give every key a name of its own", "name %q is used by keys[%d] already", key.Name, first)
		} else {
			names[key.Name] = i
		}
		if key.Role != keys.RoleWrite {
			continue
		}
		writers++
		active = active || !key.ActivateAt.After(time.Now())
		if other, twice := at[key.ActivateAt.UnixNano()]; twice {
			k.bad(path+".activateAt", "of several write keys the latest activated one wins: give them different times, or one of them role: read",
				"keys %q and %q both write from the same time on", other, key.Name)
		}
		at[key.ActivateAt.UnixNano()] = key.Name
	}
	for i, key := range c.Keys {
		k.recipients(fmt.Sprintf("keys[%d].alsoWrapWith", i), key)
	}
	switch {
	case writers == 0:
		k.bad("keys", "give one key role: write", "no key has role write")
	case !active:
		k.bad("keys", "keep the present write key until the new one activates, or leave activateAt out for a first key", "every write key activates in the future: until then nothing could be encrypted")
	}
}

func (k *checker) key(path string, key Key) {
	if key.Name == "" || len(key.Name) > 63 || strings.Trim(key.Name, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		k.bad(path+".name", "the name is stored with every object as part of key_id", "%q is not a key name: 1 to 63 of a-z 0-9 . -", key.Name)
	}
	if key.Role != keys.RoleWrite && key.Role != keys.RoleRead && key.Role != keys.RoleRetired {
		k.bad(path+".role", "", "%q is none of write, read, retired", key.Role)
	}
	if key.Role != keys.RoleWrite && !key.ActivateAt.IsZero() {
		k.bad(path+".activateAt", "leave it out, or give the key role: write", "only a key with role write activates")
	}
	if key.Generation == 0 || key.Generation > 1<<62 {
		k.bad(path+".generation", "it starts at 1 and is raised to use a key for writing again", "generation must be at least 1")
	}
	if (key.AWSKMS == nil) == (key.LocalFile == nil) {
		k.bad(path, "give one of awskms, localfile", "a key has exactly one provider")
		return
	}
	if key.AWSKMS != nil {
		if key.AWSKMS.KeyARN == "" {
			k.bad(path+".awskms.keyARN", "it looks like arn:aws:kms:<region>:<account>:key/<key id>", "keyARN is missing")
		}
		if err := keys.ValidateContext(key.AWSKMS.EncryptionContext); err != nil {
			k.bad(path+".awskms.encryptionContext", "", "%v", err)
		}
		k.regions(path+".awskms", key.AWSKMS)
	} else {
		k.absolute(path+".localfile.path", key.LocalFile.Path)
	}
}

// recipients checks what the co-recipients of a key are by name.
func (k *checker) recipients(path string, key Key) {
	if len(key.AlsoWrapWith) > 0 && k.c.Wrapping == keys.WrapDirect {
		k.bad(path, "leave it out, or use wrapping: local-kek", "with wrapping: direct there is no local KEK that others could wrap")
	}
	if n := len(key.AlsoWrapWith); n > keys.MaxRecipients {
		k.bad(path, "each one is stored with every object and asked at every new local KEK", "%d keys are named, at most %d are allowed", n, keys.MaxRecipients)
	}
	for i, name := range key.AlsoWrapWith {
		at := fmt.Sprintf("%s[%d]", path, i)
		other := slices.IndexFunc(k.c.Keys, func(o Key) bool { return o.Name == name })
		switch {
		case other < 0:
			k.bad(at, "add the key with role: read, or correct the name", "there is no key %q", name)
		case name == key.Name, k.c.Keys[other].SameKEK(key):
			k.bad(at, "name another KEK; another region of this one belongs into awskms.replicas", "%q is this very KEK", name)
		case slices.Index(key.AlsoWrapWith, name) != i:
			k.bad(at, "keep one of the two", "%q is named twice", name)
		case k.c.Keys[other].Role == keys.RoleRetired:
			k.bad(at, "take it out of alsoWrapWith before it is retired", "key %q is retired and wraps nothing any more", name)
		}
	}
}

// regions checks what needs no knowledge of ARNs; package awskms does the rest.
func (k *checker) regions(path string, a *AWSKMS) {
	switch a.RegionQuorum {
	case "", keys.QuorumAny, keys.QuorumAll:
	default:
		k.bad(path+".regionQuorum", "any is right unless a replica may be disabled on purpose", "%q is neither any nor all", a.RegionQuorum)
	}
	if a.RegionQuorum != "" && len(a.Replicas) == 0 {
		k.bad(path+".regionQuorum", "name the replicas of a multi-Region key in replicas, or leave it out", "there is one region alone")
	}
}

func (k *checker) audit() {
	a := k.c.Audit
	if a.OnFailure != "continue" && a.OnFailure != "refuse" {
		k.bad("audit.onFailure", "refuse stops the cluster's writes when the log cannot be written", "%q is neither continue nor refuse", a.OnFailure)
	}
	if a.Sync != "none" && a.Sync != "interval" && a.Sync != "each" {
		k.bad("audit.sync", "interval is right unless a loss of power may cost no record at all", "%q is none of none, interval, each", a.Sync)
	}
	if a.Path != "" {
		k.absolute("audit.path", a.Path)
	} else if a.OnFailure == "refuse" {
		k.bad("audit.path", "name the audit log", "onFailure: refuse needs a path")
	}
}

func (k *checker) suite() {
	switch c := k.c; {
	case c.Suite != SuiteXAES && c.Suite != SuiteAES:
		k.bad("suite", "leave it out unless FIPS 140-3 is demanded", "%q is neither %s nor %s", c.Suite, SuiteXAES, SuiteAES)
	case c.Suite == SuiteXAES && c.Wrapping == keys.WrapLocalKEK && fips140.Enforced():
		k.bad("suite", "write suite: "+SuiteAES, "%s is not approved by FIPS 140-3, and this process allows nothing else (fips140=only)", c.Suite)
	}
}

func (k *checker) hardening() {
	h := k.c.Hardening
	for _, m := range []struct{ path, value string }{{"dump", h.Dump}, {"memory", h.Memory}, {"privileges", h.Privileges}, {"syscalls", h.Syscalls}, {"files", h.Files}} {
		if m.value == "enforce" || m.value == "off" || m.path == "syscalls" && m.value == "log" {
			continue
		}
		k.bad("hardening."+m.path, "only hardening.syscalls has log too", "%q is neither enforce nor off", m.value)
	}
	if h.Privileges == "off" && (h.Syscalls != "off" || h.Files != "off") {
		k.bad("hardening.privileges", "loosen syscalls and files too, or leave it out", "off is not to be had alone: the kernel demands it for the other two")
	}
	for i, path := range h.Readable {
		k.absolute(fmt.Sprintf("hardening.readable[%d]", i), path)
	}
}

func (k *checker) times() {
	c := k.c
	day := 24 * time.Hour
	for _, t := range []struct {
		path     string
		value    time.Duration
		min, max time.Duration
	}{
		{"probe.interval", c.Probe.Interval, 100 * time.Millisecond, 10 * time.Minute},
		{"rotation.settleTime", c.Rotation.SettleTime, 0, day},
		{"rotation.readableFor", c.Rotation.ReadableFor, 0, 7 * day},
		{"health.maxOutage", c.Health.MaxOutage, time.Second, 30 * day},
		{"health.maxOutageDecrypt", c.Health.MaxOutageDecrypt, time.Second, 90 * day},
		{"health.keyState", c.Health.KeyState, 100 * time.Millisecond, day},
		{"health.authorization", c.Health.Authorization, 100 * time.Millisecond, 7 * day},
		{"health.credential", c.Health.Credential, 100 * time.Millisecond, 7 * day},
		{"health.wipeAfter", c.Health.WipeAfter, 0, 7 * day},
		{"reload.interval", c.Reload.Interval, 100 * time.Millisecond, time.Hour},
	} {
		if t.value < t.min || t.value > t.max {
			k.bad(t.path, "durations look like 90s, 10m or 24h", "%s is out of range: %s to %s", t.value, t.min, t.max)
		}
	}
	if n := c.Rotation.Observations; n < 1 || n > 100 {
		k.bad("rotation.observations", "3 is right for AWS KMS", "%d is out of range: 1 to 100", n)
	}
	if c.Health.MaxOutageDecrypt < c.Health.MaxOutage {
		k.bad("health.maxOutageDecrypt", "opening must last at least as long as sealing", "%s is less than maxOutage, %s", c.Health.MaxOutageDecrypt, c.Health.MaxOutage)
	}
}
