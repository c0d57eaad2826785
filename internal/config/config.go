// Package config is the configuration file of kms-plugin: strict, versioned
// YAML to plain values, every fault with its line and its remedy. It builds
// nothing, opens nothing and must not know any provider's SDK.
package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"kms-plugin.io/pkg/keys"
)

// What a file must begin with.
const (
	APIVersion = "kms-plugin.io/v1"
	Kind       = "KMSPluginConfiguration"
)

// Suites of new local KEKs.
const (
	SuiteXAES = "xaes-256-gcm"
	SuiteAES  = "aes-256-gcm"
)

// Config is one configuration file. docs/configuration.md describes every
// field with its unit, default and range, and whether a change needs a restart;
// a test holds that table against these structs.
type Config struct {
	APIVersion    string        `yaml:"apiVersion"`
	Kind          string        `yaml:"kind"`
	ClusterID     string        `yaml:"clusterID"`     // bound into every wrap; restart
	Socket        Socket        `yaml:"socket"`        // restart
	StateDir      string        `yaml:"stateDir"`      // disposable cache of wrapped local KEKs; restart
	ListenAddress string        `yaml:"listenAddress"` // loopback host:port of /livez /readyz /metrics, "" is none; restart
	Wrapping      keys.Wrapping `yaml:"wrapping"`
	Suite         string        `yaml:"suite"`
	Keys          []Key         `yaml:"keys"`
	Audit         Audit         `yaml:"audit"` // restart
	Probe         Probe         `yaml:"probe"`
	Rotation      Rotation      `yaml:"rotation"`
	Health        Health        `yaml:"health"`
	Reload        Reload        `yaml:"reload"`
	Hardening     Hardening     `yaml:"hardening"` // restart
	LogLevel      string        `yaml:"logLevel"`  // debug, info, warn, error; restart

	root *yaml.Node
}

// Socket is where kube-apiserver finds us.
type Socket struct {
	Path        string   `yaml:"path"`        // absolute, at most 107 bytes (unix(7))
	AllowedUIDs []uint32 `yaml:"allowedUIDs"` // who may connect besides our own uid
}

// Key is one KEK of the ring, with exactly one provider.
type Key struct {
	Name       string    `yaml:"name"`
	Role       keys.Role `yaml:"role"`
	ActivateAt time.Time `yaml:"activateAt"`
	Generation uint64    `yaml:"generation"`
	// AlsoWrapWith names keys that wrap this key's local KEKs too.
	AlsoWrapWith []string   `yaml:"alsoWrapWith"`
	AWSKMS       *AWSKMS    `yaml:"awskms"`
	LocalFile    *LocalFile `yaml:"localfile"`
}

// AWSKMS is a key in AWS KMS.
type AWSKMS struct {
	KeyARN                 string            `yaml:"keyARN"`
	EncryptionContext      map[string]string `yaml:"encryptionContext"`
	Endpoint               string            `yaml:"endpoint"`
	AllowStaticCredentials bool              `yaml:"allowStaticCredentials"`
	CABundle               string            `yaml:"caBundle"`
	Proxy                  string            `yaml:"proxy"`
	Replicas               []string          `yaml:"replicas"`         // ARNs of the same multi-Region key, in order of preference
	ReplicaEndpoints       map[string]string `yaml:"replicaEndpoints"` // by region
	RegionQuorum           keys.Quorum       `yaml:"regionQuorum"`     // any or all
}

// LocalFile is a Tink keyset in a file: for a laptop or a lab.
type LocalFile struct {
	Path string `yaml:"path"`
}

// Audit is the append-only log of operations.
type Audit struct {
	Path      string `yaml:"path"`      // "" is none
	OnFailure string `yaml:"onFailure"` // continue or refuse
	Sync      string `yaml:"sync"`      // none, interval or each
	Anchor    bool   `yaml:"anchor"`    // probes carry the end of the log to the KMS
}

// Probe is how the prober asks the KMS.
type Probe struct {
	Interval time.Duration `yaml:"interval"`
}

// Rotation is when new material, or a new key, may write.
type Rotation struct {
	Observations int           `yaml:"observations"`
	SettleTime   time.Duration `yaml:"settleTime"`
	ReadableFor  time.Duration `yaml:"readableFor"`
}

// Health is how long each class of failure may last.
type Health struct {
	MaxOutage        time.Duration `yaml:"maxOutage"`
	MaxOutageDecrypt time.Duration `yaml:"maxOutageDecrypt"`
	KeyState         time.Duration `yaml:"keyState"`
	Authorization    time.Duration `yaml:"authorization"`
	Credential       time.Duration `yaml:"credential"`
	WipeAfter        time.Duration `yaml:"wipeAfter"`
}

// Reload is how a changed file is noticed.
type Reload struct {
	Interval time.Duration `yaml:"interval"`
}

// Hardening loosens what the process denies itself (package harden).
type Hardening struct {
	Dump       string   `yaml:"dump"`       // enforce or off
	Memory     string   `yaml:"memory"`     // enforce or off
	Privileges string   `yaml:"privileges"` // enforce or off
	Syscalls   string   `yaml:"syscalls"`   // enforce, log or off
	Files      string   `yaml:"files"`      // enforce or off
	Readable   []string `yaml:"readable"`   // further files or directories that open
}

// defaults are what a file need not say.
func defaults() *Config {
	return &Config{
		ListenAddress: "127.0.0.1:8082",
		Wrapping:      keys.WrapLocalKEK,
		Suite:         SuiteXAES,
		Socket:        Socket{AllowedUIDs: []uint32{0}},
		Audit:         Audit{OnFailure: "continue", Sync: "interval", Anchor: true},
		Probe:         Probe{Interval: time.Minute},
		Rotation:      Rotation{Observations: 3, SettleTime: 5 * time.Minute, ReadableFor: 10 * time.Minute},
		Health: Health{MaxOutage: 24 * time.Hour, MaxOutageDecrypt: 72 * time.Hour, KeyState: time.Minute,
			Authorization: 10 * time.Minute, Credential: 4 * time.Hour, WipeAfter: time.Hour},
		Reload:    Reload{Interval: 10 * time.Second},
		Hardening: Hardening{Dump: "enforce", Memory: "enforce", Privileges: "enforce", Syscalls: "enforce", Files: "enforce"},
		LogLevel:  "info",
	}
}

// Fingerprint names what a provider is built from: equal fingerprints may share
// one KEK across a reload.
func (k Key) Fingerprint() string {
	b, err := json.Marshal(struct {
		Name string
		A    *AWSKMS
		L    *LocalFile
	}{k.Name, k.AWSKMS, k.LocalFile})
	if err != nil {
		return k.Name // cannot happen: plain fields
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// Target is the KEK a key stands for, as far as the file tells.
func (k Key) Target() string {
	switch {
	case k.AWSKMS != nil:
		return "awskms " + k.AWSKMS.KeyARN
	case k.LocalFile != nil:
		return "localfile " + k.LocalFile.Path
	}
	return ""
}

// SameKEK says whether two keys are one KEK, under whatever name or context: what is
// done to the one in its cloud is done to the other. All replicas of a multi-Region key
// are one KEK, so its region does not count.
func (k Key) SameKEK(o Key) bool {
	return regionless(k.Target()) == regionless(o.Target())
}

func regionless(target string) string {
	if p := strings.Split(target, ":"); len(p) == 6 && strings.HasPrefix(p[5], "key/mrk-") {
		p[3] = ""
		return strings.Join(p, ":")
	}
	return target
}

// Hash names the bytes of a file.
func Hash(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}
