// Package cluster looks at what stands around kms-plugin on a control-plane node:
// the API server's EncryptionConfiguration and static pod, the plugins of the other
// nodes, and what etcd holds. It reads no credential and asks no KMS: that is
// package doctor's, on the node.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/doctor"
	"kms-plugin.io/internal/status"
	"kms-plugin.io/pkg/keys/awskms"
)

// Names are the checks there are, in the order they run (docs/preflight.md).
func Names() []string {
	return []string{"plugin-config", "apiserver-manifest", "apiserver-config-mount", "apiserver-socket-mount", "apiserver-reload", "apiserver-user",
		"encryption-config", "kms-version", "kms-endpoint", "kms-timeout", "kms-cachesize", "provider-order", "plain-resources",
		"plugin-socket", "plugins-agree", "plugins-know", "coverage", "provider-names", "providers-dropped", "identity"}
}

// Options say what is looked at. What is left out is skipped.
type Options struct {
	PluginConfig string   // configuration of kms-plugin on this node
	Encryption   string   // EncryptionConfiguration on this node; "" is that of the manifest
	Manifest     string   // static pod of kube-apiserver on this node
	Plugins      []string // listenAddress of the plugin of each node
	// Coverage reads etcd; nil: it is not looked at. Names is nil if the
	// plugin's configuration is not valid.
	Coverage func(context.Context, *encryptionconfig.Config, *coverage.Names) (*coverage.Report, error)
	Scrape   func(ctx context.Context, address string) (*status.Plugin, error)
}

// plane is one look at a control plane: checks leave here what later ones need.
type plane struct {
	o Options

	plugin    *config.Config // nil if it is not valid
	hash      string         // of its bytes
	pluginErr error
	problems  config.Problems

	manifest    *manifest // nil if it is not there, or not valid
	manifestErr error

	encryptionFile string
	encryption     *encryptionconfig.Config // nil if it is not valid
	encryptionErr  error

	plugins map[string]*status.Plugin // that answered
	report  *coverage.Report          // nil if etcd was not read
}

// Checks are all checks. It reads the files, and calls nothing.
func Checks(o Options) []preflight.Check {
	p := &plane{o: o, plugins: map[string]*status.Plugin{}}
	p.loadPlugin()
	if o.Manifest != "" {
		p.manifest, p.manifestErr = loadManifest(o.Manifest)
	}
	p.loadEncryption()
	var out []preflight.Check
	add := func(name string, run func(context.Context) preflight.Result) {
		out = append(out, preflight.Check{Name: name, Run: run})
	}
	add("plugin-config", p.checkPlugin)
	add("apiserver-manifest", p.checkManifest)
	add("apiserver-config-mount", p.configMount)
	add("apiserver-socket-mount", p.socketMount)
	add("apiserver-reload", p.reload)
	add("apiserver-user", p.user)
	add("encryption-config", p.checkEncryption)
	add("kms-version", p.lint(p.version))
	add("kms-endpoint", p.lint(p.endpoint))
	add("kms-timeout", p.lint(p.timeout))
	add("kms-cachesize", p.lint(p.cacheSize))
	add("provider-order", p.lint(p.order))
	add("plain-resources", p.lint(p.plain))
	add("plugin-socket", p.socket)
	add("plugins-agree", p.agree)
	add("plugins-know", p.know)
	out = append(out, preflight.Check{Name: "coverage", Run: p.coverage, Long: true})
	add("provider-names", p.stored(p.renamed))
	add("providers-dropped", p.stored(p.dropped))
	add("identity", p.lint(p.identity))
	return out
}

func (p *plane) loadPlugin() {
	if p.o.PluginConfig == "" {
		return
	}
	data, err := os.ReadFile(p.o.PluginConfig)
	if err != nil {
		p.pluginErr = err
		return
	}
	p.hash = config.Hash(data)
	p.plugin, p.problems = config.Parse(data)
	if p.plugin == nil {
		return
	}
	for i, k := range p.plugin.Keys {
		if k.AWSKMS == nil {
			continue
		}
		// Offline, and without the environment, which is not the plugin's.
		c := awskms.Config{KeyARN: k.AWSKMS.KeyARN, Endpoint: k.AWSKMS.Endpoint, AllowStaticCredentials: true, Proxy: k.AWSKMS.Proxy}
		if err := awskms.Validate(c); err != nil {
			path := fmt.Sprintf("keys[%d].awskms", i)
			p.problems = append(p.problems, config.Problem{Line: p.plugin.Line(path), Path: path, Message: err.Error(), Hint: preflight.HintOf(err, "")})
		}
	}
}

func (p *plane) checkPlugin(context.Context) preflight.Result {
	switch {
	case p.o.PluginConfig == "":
		return preflight.Skip("no --plugin-config")
	case p.pluginErr != nil:
		return preflight.Fail("--plugin-config FILE, or write one: deploy/examples", "%v", p.pluginErr)
	}
	return doctor.OfProblems(p.o.PluginConfig, p.problems)
}

func (p *plane) loadEncryption() {
	p.encryptionFile = p.o.Encryption
	if p.encryptionFile == "" && p.manifest != nil {
		if inside := p.manifest.flag(configFlag); inside != "" {
			p.encryptionFile, _, _ = p.manifest.onHost(inside)
		}
	}
	if p.encryptionFile != "" {
		p.encryption, p.encryptionErr = encryptionconfig.Load(p.encryptionFile)
	}
}

func (p *plane) checkEncryption(context.Context) preflight.Result {
	switch {
	case p.encryptionErr != nil:
		return preflight.Fail("put it right before kube-apiserver starts: it refuses the file too", "%v", p.encryptionErr)
	case p.encryption == nil:
		return preflight.Skip("no EncryptionConfiguration is known: --encryption-config FILE")
	}
	return preflight.Pass("%s is valid", p.encryptionFile)
}

// lint is a check that needs a valid EncryptionConfiguration.
func (p *plane) lint(run func() preflight.Result) func(context.Context) preflight.Result {
	return func(context.Context) preflight.Result {
		if p.encryption == nil {
			return preflight.Skip("no valid EncryptionConfiguration")
		}
		return run()
	}
}

// stored is a check that also needs what etcd holds.
func (p *plane) stored(run func() preflight.Result) func(context.Context) preflight.Result {
	return p.lint(func() preflight.Result {
		if p.report == nil {
			return preflight.Skip("etcd was not read")
		}
		return run()
	})
}

func (p *plane) socket(ctx context.Context) preflight.Result {
	if p.plugin == nil {
		return preflight.Skip("no valid configuration of kms-plugin")
	}
	return doctor.Socket(ctx, p.plugin.Socket.Path)
}

func (p *plane) coverage(ctx context.Context) preflight.Result {
	if p.o.Coverage == nil {
		return preflight.Skip("etcd is not looked at")
	}
	var names *coverage.Names
	if p.plugin != nil {
		names = coverage.NewNames(p.plugin, time.Now())
	}
	r, err := p.o.Coverage(ctx, p.encryption, names)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return preflight.Skip("etcd cannot be read from here: %v", err)
	case err != nil:
		return preflight.Warn(preflight.HintOf(err, "--endpoints, --cacert, --cert, --key; or --no-etcd"), "etcd cannot be read: %v", err)
	}
	if p.encryption == nil {
		return preflight.Tell("%s; what should be encrypted is not known", r.Verdict())
	}
	p.report = r
	const look = "kmsctl coverage --encryption-config FILE shows them"
	switch {
	case r.Totals.Broken > 0:
		return preflight.Fail(look, "%s", r.Verdict())
	case r.Totals.Plain > 0:
		return preflight.Warn(look+"; kmsctl rotate run writes them again", "%s", r.Verdict())
	case r.Totals.Older+r.Totals.Others > 0:
		return preflight.Tell("%s", r.Verdict())
	}
	return preflight.Pass("%s", r.Verdict())
}
