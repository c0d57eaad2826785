// Package doctor looks at everything that kms-plugin needs on its node: its
// configuration, its credential, the KMS and the key, its socket and its process.
// It links what the daemon links, and must not know etcd, nor of API servers more
// than who issues their tokens.
package doctor

import (
	"context"
	"fmt"
	"os"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/daemon"
	"kms-plugin.io/internal/harden"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
)

// Names are the checks there are, in the order they run (docs/preflight.md).
func Names() []string {
	return []string{"config", "state-dir", "socket-directory", "socket", "process", "hardening", "resolver", "swap", "web-identity", "credential", "imds", "kms-reach", "clock", "caller",
		"kms-roundtrip", "kms-context", "key-state", "key-rotation", "denied-reencrypt", "denied-grant", "denied-foreign-cluster", "localfile"}
}

// Options say what is looked at.
type Options struct {
	Config      string // file
	STSEndpoint string // URL; "" is that of the region
	Manifest    string // static pod of kube-apiserver on this node, for its issuer; "" for none
}

// doctor is one examination: checks leave here what later ones need.
type doctor struct {
	o        Options
	config   *config.Config // nil if it is not valid
	problems config.Problems
	err      error // why the file could not be read
}

// Checks are all checks for a configuration. It reads the file, and calls nothing.
func Checks(ctx context.Context, o Options) []preflight.Check {
	d := &doctor{o: o}
	d.load(ctx)
	out := []preflight.Check{{Name: "config", Run: d.checkConfig}}
	if d.config == nil {
		return out
	}
	out = append(out,
		preflight.Check{Name: "state-dir", Run: d.stateDir},
		preflight.Check{Name: "socket-directory", Run: d.socketDirectory},
		preflight.Check{Name: "socket", Run: d.socket},
		preflight.Check{Name: "process", Run: d.process},
		preflight.Check{Name: "hardening", Run: d.hardening},
		preflight.Check{Name: "swap", Run: func(context.Context) preflight.Result { return swap("/proc/swaps") }})
	if d.config.Hardening.Files != string(harden.Off) {
		out = append(out, preflight.Check{Name: "resolver", Run: func(context.Context) preflight.Result {
			return resolver("/etc/resolv.conf", d.config.Hardening.Readable)
		}})
	}
	for _, k := range d.config.Keys {
		out = append(out, d.keyChecks(ctx, k)...)
	}
	return out
}

func (d *doctor) load(ctx context.Context) {
	if d.problems, d.err = daemon.Check(ctx, d.o.Config, ""); d.err != nil || d.problems.Fatal() != nil {
		return
	}
	data, err := os.ReadFile(d.o.Config)
	if err != nil {
		d.err = err
		return
	}
	d.config, _ = config.Parse(data) // Check found no problem
}

func (d *doctor) checkConfig(context.Context) preflight.Result {
	if d.err != nil {
		return preflight.Fail(preflight.HintOf(d.err, "--config FILE"), "%v", d.err)
	}
	return OfProblems(d.o.Config, d.problems)
}

// OfProblems is the result for a file of kms-plugin: its first problem in full,
// and how many there are.
func OfProblems(file string, found config.Problems) preflight.Result {
	bad := found.Fatal()
	if len(bad) == 0 {
		return preflight.Pass("%s is valid", file)
	}
	more := ""
	if len(bad) > 1 {
		more = fmt.Sprintf(" (and %d more: kms-plugin config check %s)", len(bad)-1, file)
	}
	first, remedy := bad[0], bad[0].Hint
	first.Hint = ""
	if remedy == "" {
		remedy = "kms-plugin config check " + file
	}
	return preflight.Fail(remedy, "%s: %v%s", file, config.Problems{first}, more)
}

func (d *doctor) keyChecks(ctx context.Context, k config.Key) []preflight.Check {
	kek, err := daemon.Provider(ctx, k)
	p := &patient{key: k, cluster: d.config.ClusterID, manifest: d.o.Manifest, kek: kek, setup: err}
	named := func(name string, run func(context.Context) preflight.Result) preflight.Check {
		return preflight.Check{Name: name, Subject: k.Name, Run: run}
	}
	if k.AWSKMS == nil {
		return []preflight.Check{named("kms-roundtrip", p.roundtrip), named("kms-context", p.context), named("localfile", p.localfile)}
	}
	if p.aws, err = awskms.Inspect(ctx, daemon.AWSConfig(k), d.o.STSEndpoint); err != nil && p.setup == nil {
		p.setup = err
	}
	return []preflight.Check{
		named("web-identity", p.webIdentity), named("credential", p.credential), named("imds", p.imds), named("kms-reach", p.reach), named("clock", p.clock), named("caller", p.caller),
		named("kms-roundtrip", p.roundtrip), named("kms-context", p.context),
		named("key-state", p.state), named("key-rotation", p.rotation),
		named("denied-reencrypt", p.denied(awskms.ReEncrypt, "with it data can be moved under a key of somebody else")),
		named("denied-grant", p.denied(awskms.CreateGrant, "with it others can be let in")),
		named("denied-foreign-cluster", p.foreign),
	}
}

// patient is one key under examination.
type patient struct {
	key      config.Key
	cluster  string
	manifest string
	kek      keys.KEK
	aws      *awskms.Inspector // nil of a key that is not in AWS
	setup    error
	blocked  string // why nothing more can be asked of the KMS, "" if it can
	blob     []byte // that the round trip wrapped
}

func (p *patient) bound(cluster string) keys.Context {
	var configured map[string]string
	if p.key.AWSKMS != nil {
		configured = p.key.AWSKMS.EncryptionContext
	}
	return keys.NewContext(cluster, keys.BlobProbe, configured)
}
