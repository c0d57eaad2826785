package cluster

import (
	"fmt"
	"slices"
	"strings"

	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/stored"
)

type provider = encryptionconfig.Provider

// lost is what is stored under a provider that the file would not read it with.
type lost struct {
	kind, name string // of the provider
	resource   string // one of them
	objects    int64
}

// unreadable compares what is stored with the rules, resource by resource.
func (p *plane) unreadable() []lost {
	byID := map[string]coverage.Key{}
	for _, k := range p.report.Keys {
		byID[k.ID] = k
	}
	var out []lost
	for _, res := range p.report.Resources {
		for _, share := range res.Keys {
			k, ok := byID[share.Key]
			if !ok || p.reads(res.Resource, k) {
				continue
			}
			i := slices.IndexFunc(out, func(l lost) bool { return l.kind == k.Kind && l.name == k.Provider })
			if i < 0 {
				out = append(out, lost{kind: k.Kind, name: k.Provider, resource: res.Resource})
				i = len(out) - 1
			}
			out[i].objects += share.Objects
		}
	}
	return out
}

// reads tells whether a resource can be read by the provider that wrote it. Of a
// resource that no rule names, the group may be unknown: then any list will do.
func (p *plane) reads(resource string, k coverage.Key) bool {
	has := func(r *encryptionconfig.Rule) bool {
		return slices.ContainsFunc(r.Providers, func(q provider) bool { return q.Kind.String() == k.Kind && q.Name == k.Provider })
	}
	if r := p.encryption.For(stored.ParseGroupResource(resource)); r != nil {
		return has(r)
	}
	return slices.ContainsFunc(p.encryption.Rules(), has)
}

// renamed finds KMS v2 providers by whose name values are stored, and which the
// file does not have: kube-apiserver finds the provider of a value by that name.
func (p *plane) renamed() preflight.Result {
	var known []string
	for _, k := range p.encryption.KMS() {
		known = append(known, fmt.Sprintf("%q", k.Name))
	}
	for _, l := range p.unreadable() {
		if l.kind == stored.KMSv2.String() && !slices.Contains(known, fmt.Sprintf("%q", l.name)) {
			return preflight.Fail(fmt.Sprintf("name it %q again; for another name keep the old one as a second provider with the same endpoint, kmsctl rotate run, and drop it then", l.name),
				"%d objects (%s and others) are stored under the kms provider %q, and the file has %s: a provider cannot be renamed", l.objects, l.resource, l.name, firstOf(strings.Join(known, ", "), "none"))
		}
	}
	return preflight.Pass("every kms provider that etcd knows is in the file by its name")
}

// dropped finds providers that left the file, or a list, too early.
func (p *plane) dropped() preflight.Result {
	names := map[string]bool{}
	for _, k := range p.encryption.KMS() {
		names[k.Name] = true
	}
	for _, l := range p.unreadable() {
		if l.kind == stored.KMSv2.String() && !names[l.name] {
			continue // renamed says so
		}
		return preflight.Fail("put it back, last before identity, until kmsctl coverage shows nothing under it", "%d objects (%s and others) are stored under %s %q, which their list does not have (any more): they cannot be read", l.objects, l.resource, l.kind, l.name)
	}
	return preflight.Pass("every provider that something is stored under is in its list")
}
