// Package bootstrap makes the files that switch encryption on: what one
// control-plane node needs, and what the cloud and the alerts need, from a few
// parameters. Equal parameters give equal bytes. It reads and writes nothing, and
// must not know the daemon, a cloud or a cluster.
package bootstrap

import (
	"fmt"
	"io/fs"
)

// Where things are on a node. One place for all: whoever knows one node knows
// every node.
const (
	ConfigPath     = "/etc/kms-plugin/config.yaml"
	SocketDir      = "/run/kms-plugin"
	SocketPath     = SocketDir + "/kms.sock"
	StateDir       = "/var/lib/kms-plugin"
	AuditDir       = "/var/log/kms-plugin"
	ListenAddress  = "127.0.0.1:8082"
	EncryptionPath = "/etc/kubernetes/encryption/config.yaml"
)

// ConfigFile is the plugin's configuration among the files that are made.
const ConfigFile = "kms-plugin/config.yaml"

// Image is the reference that `make image` gives its result. It lies in a domain
// that nobody can own (RFC 2606): a pull of it never reaches a stranger.
const Image = "kms-plugin.example/kms-plugin:unreleased"

// Layout is how the API server of a node is run.
type Layout string

// The layouts.
const (
	Kubeadm Layout = "kubeadm"
	Generic Layout = "generic" // flags and mounts are put in by other means
)

// Run is how the plugin itself is run.
type Run string

// The ways to run it.
const (
	StaticPod Run = "static-pod"
	Systemd   Run = "systemd"
)

// Params are what the files depend on. The zero value of a field means its
// default; ClusterID and one of KeyARN and LocalFile are required.
type Params struct {
	ClusterID string
	KeyARN    string // a key in AWS KMS
	LocalFile bool   // a keyset in a file, for a lab
	KeyName   string // name of the key in the ring; kek-1
	Endpoint  string // of AWS KMS, such as a VPC endpoint; that of the region
	NodeRole  string // ARN of the IAM role of the control-plane nodes

	Layout       Layout   // kubeadm
	Run          Run      // static-pod
	Image        string   // Image; for static-pod
	Resources    []string // secrets
	ProviderName string   // in the EncryptionConfiguration; kms-plugin
	Existing     bool     // the cluster runs already

	// From is the EncryptionConfiguration that is in force, to move in from;
	// EncryptionPath is where API servers read it. Both exclude Resources.
	From           []byte
	EncryptionPath string

	// Kubeadm is the ClusterConfiguration that ours is merged into, if any.
	KubeadmConfig []byte
}

// File is one file, by its path below the directory of all.
type File struct {
	Path   string
	Mode   fs.FileMode
	Data   []byte
	Secret bool // holds keys of another provider: never shown
}

// Error is a parameter that makes no sense, or does not fit another one.
type Error struct {
	Flag   string // of kmsctl init, without dashes
	Reason string
	Remedy string
}

func (e *Error) Error() string { return "--" + e.Flag + " " + e.Reason }

// Hint is what to do about it.
func (e *Error) Hint() string { return e.Remedy }

// Files makes all files, in the order a person reads them. Errors about a parameter
// are *Error.
func Files(p Params) ([]File, error) {
	p = p.withDefaults()
	if err := p.validate(); err != nil {
		return nil, err
	}
	encryption, err := encryptionFiles(p)
	if err != nil {
		return nil, err
	}
	apiserver, err := apiserverFiles(p)
	if err != nil {
		return nil, err
	}
	var out []File
	add := func(files ...File) { out = append(out, files...) }
	add(text(p, "README.md", 0o644, "readme.md"))
	add(text(p, ConfigFile, 0o600, "config.yaml"))
	if p.Run == StaticPod {
		add(text(p, "kms-plugin/kms-plugin.yaml", 0o600, "static-pod.yaml"),
			text(p, "kms-plugin/tmpfiles.conf", 0o644, "tmpfiles.conf"))
	} else {
		add(text(p, "kms-plugin/kms-plugin.service", 0o644, "kms-plugin.service"),
			text(p, "kms-plugin/kms-plugin.socket", 0o644, "kms-plugin.socket"),
			text(p, "kms-plugin/sysusers.conf", 0o644, "sysusers.conf"))
	}
	add(text(p, "kms-plugin/kms-canary.service", 0o644, "kms-canary.service"),
		text(p, "kms-plugin/kms-canary.timer", 0o644, "kms-canary.timer"))
	add(encryption...)
	add(apiserver...)
	if p.KeyARN != "" {
		add(File{Path: "aws/iam-policy.json", Mode: 0o644, Data: iamPolicy(p)},
			File{Path: "aws/key-policy.json", Mode: 0o644, Data: keyPolicy(p)})
	}
	add(text(p, "alerts.yaml", 0o644, "alerts.yaml"))
	if err := check(out); err != nil {
		return nil, err
	}
	return out, nil
}

func (p Params) withDefaults() Params {
	set := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	set(&p.KeyName, "kek-1")
	set((*string)(&p.Layout), string(Kubeadm))
	set((*string)(&p.Run), string(StaticPod))
	set(&p.Image, Image)
	set(&p.ProviderName, "kms-plugin")
	if p.From == nil && p.EncryptionPath == "" {
		p.EncryptionPath = EncryptionPath
	}
	if p.From == nil && len(p.Resources) == 0 {
		p.Resources = []string{"secrets"}
	}
	p.Existing = p.Existing || p.From != nil
	return p
}

// check is the last look: what the programs that read the files would refuse must
// not leave this package.
func check(files []File) error {
	for _, f := range files {
		if err := checkFile(f); err != nil {
			return fmt.Errorf("the file %s that was made is wrong, which is a fault of this program: %w", f.Path, err)
		}
	}
	return nil
}
