package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/harden"
	"kms-plugin.io/pkg/keys/awskms"
)

// policy is what this process still needs once it serves.
func policy(ctx context.Context, source Source, c *config.Config) harden.Policy {
	h := c.Hardening
	p := harden.Policy{
		Dump: harden.Mode(h.Dump), Memory: harden.Mode(h.Memory), Privileges: harden.Mode(h.Privileges), Syscalls: harden.Mode(h.Syscalls), Files: harden.Mode(h.Files),
		Readable: h.Readable, Writable: []string{c.StateDir}, Removing: []string{filepath.Dir(c.Socket.Path)},
	}
	if source.Path != "" {
		p.Readable = append(p.Readable, absolute(source.Path))
	}
	if c.Audit.Path != "" {
		p.Writable = append(p.Writable, filepath.Dir(c.Audit.Path))
	}
	aws := false
	for _, f := range filesOf(c) {
		p.Readable = append(p.Readable, f.name)
	}
	for _, k := range c.Keys {
		aws = aws || k.AWSKMS != nil
	}
	if aws {
		p.Readable = append(p.Readable, awskms.HostOf(ctx).Files...)
	}
	return p
}

// file is one that a key names.
type file struct{ path, name string }

func filesOf(c *config.Config) (out []file) {
	for i, k := range c.Keys {
		if k.AWSKMS != nil && k.AWSKMS.CABundle != "" {
			out = append(out, file{fmt.Sprintf("keys[%d].awskms.caBundle", i), absolute(k.AWSKMS.CABundle)})
		}
		if k.LocalFile != nil {
			out = append(out, file{fmt.Sprintf("keys[%d].localfile.path", i), k.LocalFile.Path})
		}
	}
	return out
}

func absolute(path string) string {
	if a, err := filepath.Abs(path); err == nil {
		return a
	}
	return path
}

// broker starts the process that starts programs for credentials, if one is needed.
func broker(ctx context.Context, start func() (*awskms.Broker, error)) (*awskms.Broker, error) {
	if start == nil || !awskms.HostOf(ctx).Program {
		return nil, nil
	}
	return start()
}

// confine takes the measures and tells what became of them.
func (d *daemon) confine(ctx context.Context, apply func(harden.Policy) *harden.Result) {
	if apply == nil {
		return
	}
	d.sandbox = apply(policy(ctx, d.source, d.loaded.config))
	level, attrs := slog.LevelInfo, []slog.Attr{}
	for _, m := range d.sandbox.Measures {
		attrs = append(attrs, slog.String(m.Name, m.String()))
		d.observer.SetHardening(m.Name, string(m.State))
		if m.State == harden.Failed {
			level = slog.LevelError
		}
	}
	d.observer.log.LogAttrs(ctx, level, "hardening", attrs...)
}

// outside refuses a file of configuration that names what the sandbox does not
// open: said here, "permission denied" would send people to look at modes.
func (d *daemon) outside(ctx context.Context, data []byte) error {
	c, problems := config.Parse(data)
	if problems.Fatal() != nil {
		return nil // told by parse
	}
	for i, k := range c.Keys {
		if _, have := d.loaded.keks[k.Fingerprint()]; k.AWSKMS != nil && !have && d.broker == nil && d.sandbox.Confined() && awskms.HostOf(ctx).Program {
			path := fmt.Sprintf("keys[%d]", i)
			return config.Problems{{Line: c.Line(path), Path: path, Hint: config.RestartHint,
				Message: "the AWS profile of this host has a credential_process now, and this process may not start programs any more"}}
		}
	}
	for _, f := range filesOf(c) {
		if !d.sandbox.Opens(f.name) {
			return config.Problems{{Line: c.Line(f.path), Path: f.path, Hint: config.RestartHint,
				Message: fmt.Sprintf("%q is outside of what this process may still open", f.name)}}
		}
	}
	return nil
}

// moved tells of files and directories that came too late to open here, in the log once.
func (d *daemon) moved(told map[string]bool) {
	out := d.sandbox.Closed()
	d.observer.SetOutOfReach(len(out))
	for _, path := range out {
		if !told[path] {
			told[path] = true
			d.observer.log.Error("it was replaced or made after the start; this process goes on without it until it is restarted",
				"path", path, "hint", config.RestartHint+", or name its directory in hardening.readable")
		}
	}
}
