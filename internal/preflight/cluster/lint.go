package cluster

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"kms-plugin.io/internal/kmsclient"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/stored"
)

func (p *plane) version() preflight.Result {
	for _, k := range p.encryption.KMS() {
		if k.APIVersion != "v2" {
			return preflight.Fail("write apiVersion: v2 into the provider; without it v1 is meant", "provider %q speaks KMS %s, which is off by default since Kubernetes 1.29, and kms-plugin does not", k.Name, firstOf(k.APIVersion, "v1"))
		}
	}
	if len(p.encryption.KMS()) == 0 {
		return preflight.Warn("add kms-plugin as a provider: deploy/static-pods/encryption-configuration.yaml", "no kms provider")
	}
	return preflight.Pass("all kms providers speak v2")
}

// socketOf is the path that kube-apiserver dials for an endpoint
// (k8s.io/apiserver .../envelope/util.ParseEndpoint): of unix://a/b it takes /b.
func socketOf(endpoint string) (string, error) {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Scheme != "unix":
		return "", errors.New("it does not begin with unix://")
	case u.Host != "" || !strings.HasPrefix(u.Path, "/"):
		return "", fmt.Errorf("of a relative path kube-apiserver dials %q", u.Path)
	case strings.HasPrefix(u.Path, "/@"):
		return "", errors.New("abstract sockets have no file permissions, and kms-plugin has none")
	case u.Path == "/":
		return "", errors.New("it names no socket")
	}
	return path.Clean(u.Path), nil
}

// dials is the path on this host, as far as it is known, of a provider's socket.
func (p *plane) dials(endpoint string) (string, error) {
	s, err := socketOf(endpoint)
	if err == nil && p.manifest != nil {
		if host, _, ok := p.manifest.onHost(s); ok {
			s = host
		}
	}
	return s, err
}

func (p *plane) endpoint() preflight.Result {
	var sockets []string
	for _, k := range p.encryption.KMS() {
		s, err := p.dials(k.Endpoint)
		if err != nil {
			return preflight.Fail("write endpoint: unix:///run/kms-plugin/kms.sock, with three slashes", "endpoint %q of provider %q: %v", k.Endpoint, k.Name, err)
		}
		sockets = append(sockets, s)
	}
	switch {
	case len(sockets) == 0:
		return preflight.Skip("no kms provider")
	case p.plugin == nil:
		return preflight.Pass("well-formed")
	case !slices.Contains(sockets, p.plugin.Socket.Path):
		return preflight.Fail("make endpoint and socket.path the same file of this host", "no kms provider dials socket.path of kms-plugin, %s: they dial %s", p.plugin.Socket.Path, strings.Join(sockets, ", "))
	}
	return preflight.Pass("kube-apiserver dials socket.path of kms-plugin")
}

// ours are the names of the providers that dial kms-plugin; without its
// configuration, of all that speak v2.
func (p *plane) ours() map[string]bool {
	out := map[string]bool{}
	for _, k := range p.encryption.KMS() {
		if s, err := p.dials(k.Endpoint); p.plugin == nil || err == nil && s == p.plugin.Socket.Path {
			out[k.Name] = true
		}
	}
	return out
}

func (p *plane) timeout() preflight.Result {
	const remedy = "write timeout: 3s, or leave it out"
	for _, k := range p.encryption.KMS() {
		if k.Timeout == "" {
			continue
		}
		d, err := time.ParseDuration(k.Timeout)
		switch {
		case err != nil || d <= 0:
			return preflight.Fail(remedy, "timeout %q of provider %q is not a time above zero", k.Timeout, k.Name)
		case d < kmsclient.Timeout:
			return preflight.Warn(remedy, "timeout %s of provider %q is less than %s: kms-plugin answers within 2.5 s and names the cause, which is then lost", d, k.Name, kmsclient.Timeout)
		case d > 10*time.Second:
			return preflight.Warn(remedy, "timeout %s of provider %q holds requests that long when a plugin hangs", d, k.Name)
		}
	}
	return preflight.Pass("kube-apiserver gives a call at least %s", kmsclient.Timeout)
}

func (p *plane) cacheSize() preflight.Result {
	for _, k := range p.encryption.KMS() {
		if k.CacheSize != nil && k.APIVersion == "v2" {
			return preflight.Fail("drop cachesize", "provider %q has a cachesize, which KMS v2 does not know: kube-apiserver refuses the file", k.Name)
		}
	}
	return preflight.Pass("no v2 provider has one")
}

func (p *plane) order() preflight.Result {
	if s := p.encryption.Shadowed(); len(s) > 0 {
		return preflight.Warn("put what is special before what is general", "%s: an earlier wildcard covers it, and its providers never come to bear", strings.Join(s, ", "))
	}
	var second []string
	names := p.ours()
	is := func(q provider) bool { return q.Kind == stored.KMSv2 && names[q.Name] }
	for _, r := range p.encryption.Rules() {
		switch first := r.Providers[0]; {
		case is(first) || !slices.ContainsFunc(r.Providers, is):
		case first.Kind == stored.Plain:
			return preflight.Warn("when every API server has this file, put kms first and identity last", "%s is written in plain text: identity is first, and kms only reads", r.Pattern)
		default:
			second = append(second, r.Pattern+" by "+first.String())
		}
	}
	if len(second) > 0 {
		return preflight.Tell("kms-plugin reads, and does not write yet: %s; when every API server has this file, put it first", strings.Join(second, ", "))
	}
	return preflight.Pass("what kms-plugin can read, it writes")
}

// plain tells of what is written in plain text. Secrets must not be.
func (p *plane) plain() preflight.Result {
	var encrypted []string
	all := false
	for _, r := range p.encryption.Rules() {
		if r.Providers[0].Kind != stored.Plain {
			encrypted = append(encrypted, r.Pattern)
			all = all || r.Pattern == "*.*"
		}
	}
	secrets := p.encryption.For(stored.ParseGroupResource("secrets"))
	switch {
	case secrets == nil || !slices.ContainsFunc(secrets.Providers, func(q provider) bool { return q.Kind != stored.Plain }):
		return preflight.Fail("add secrets to the resources of the kms provider", "secrets stay in plain text")
	case all:
		return preflight.Pass("everything that can be is encrypted")
	case len(encrypted) == 0:
		return preflight.Warn("see provider-order", "nothing is written encrypted yet")
	}
	return preflight.Tell("encrypted: %s; everything else stays in plain text, ConfigMaps and custom resources included unless named", strings.Join(encrypted, ", "))
}

// identity: without it what is still in plain text cannot be read; with it, what
// somebody writes into etcd in plain text is believed.
func (p *plane) identity() preflight.Result {
	var without []string
	for _, r := range p.encryption.Rules() {
		if !slices.ContainsFunc(r.Providers, func(q provider) bool { return q.Kind == stored.Plain }) {
			without = append(without, r.Pattern)
		}
	}
	if len(without) == 0 {
		return preflight.Tell("identity is in every list: what is still in plain text can be read; drop it when kmsctl coverage --require no-plaintext holds")
	}
	if p.report == nil {
		return preflight.Tell("%s has no identity: if anything of it is in plain text it cannot be read; kmsctl coverage --require no-plaintext tells", strings.Join(without, ", "))
	}
	for _, res := range p.report.Resources {
		rule := p.encryption.For(stored.ParseGroupResource(res.Resource))
		if res.Plain > 0 && rule != nil && slices.Contains(without, rule.Pattern) {
			return preflight.Fail("put identity: {} last into the list of "+rule.Pattern+" until kmsctl rotate run is through", "%d objects of %s are in plain text, and without identity kube-apiserver cannot read them", res.Plain, res.Resource)
		}
	}
	return preflight.Pass("nothing in plain text needs it")
}
