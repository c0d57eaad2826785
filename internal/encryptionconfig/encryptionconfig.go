// Package encryptionconfig reads kube-apiserver's EncryptionConfiguration as far
// as it tells which resource is written under which provider. Keys in it are
// parsed over and never kept. It must not know values or etcd.
package encryptionconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"kms-plugin.io/internal/stored"
)

// Provider is one entry of a list of providers: a KMS provider by its name, or a
// key of another provider by its name. Identity has no name.
type Provider struct {
	Kind stored.Kind `json:"-"` // Plain is identity
	Name string      `json:"name"`
}

func (p Provider) String() string {
	if p.Kind == stored.Plain {
		return "identity"
	}
	return p.Kind.String() + " " + p.Name
}

// Is tells whether a value was written by this provider.
func (p Provider) Is(kind stored.Kind, name string) bool {
	return p.Kind == kind && (kind == stored.Plain || p.Name == name)
}

// Rule is what one resource pattern is written and read with. Providers[0] writes.
type Rule struct {
	Pattern   string // "secrets", "*.apps", "*."
	Providers []Provider
}

// Config is an EncryptionConfiguration.
type Config struct {
	rules    map[stored.GroupResource]*Rule
	order    []*Rule
	kms      []KMS
	shadowed []string
	hash     string
}

// KMS is one kms provider as the file has it, with nothing filled in.
type KMS struct {
	Name, APIVersion, Endpoint, Timeout string
	CacheSize                           *int
}

// KMS are the kms providers in the order of the file.
func (c *Config) KMS() []KMS { return c.kms }

// Shadowed are patterns that never come to bear: an earlier wildcard covers them.
func (c *Config) Shadowed() []string { return c.shadowed }

type file struct {
	APIVersion string         `yaml:"apiVersion"`
	Kind       string         `yaml:"kind"`
	Resources  []resourceList `yaml:"resources"`
	Metadata   any            `yaml:"metadata"`
}

type resourceList struct {
	Resources []string   `yaml:"resources"`
	Providers []provider `yaml:"providers"`
}

type keyList struct {
	Keys []struct {
		Name   string    `yaml:"name"`
		Secret yaml.Node `yaml:"secret"`
	} `yaml:"keys"`
}

type provider struct {
	AESGCM    *keyList  `yaml:"aesgcm"`
	AESCBC    *keyList  `yaml:"aescbc"`
	Secretbox *keyList  `yaml:"secretbox"`
	Identity  *struct{} `yaml:"identity"`
	KMS       *struct {
		APIVersion string `yaml:"apiVersion"`
		Name       string `yaml:"name"`
		CacheSize  *int   `yaml:"cachesize"`
		Endpoint   string `yaml:"endpoint"`
		Timeout    string `yaml:"timeout"`
	} `yaml:"kms"`
}

const hint = "give the file of kube-apiserver's flag --encryption-provider-config"

// Error is a file that cannot be used.
type Error struct {
	Path   string
	Reason string
}

func (e *Error) Error() string {
	return fmt.Sprintf("EncryptionConfiguration %q: %s", e.Path, e.Reason)
}

// Hint is what to do about it.
func (e *Error) Hint() string { return hint }

// Load reads a file. Errors are *Error.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, &Error{path, errors.Unwrap(err).Error()}
	}
	c, err := Parse(data)
	if err != nil {
		return nil, &Error{path, err.Error()}
	}
	return c, nil
}

// Parse reads YAML or JSON as strictly as kube-apiserver does.
func Parse(data []byte) (*Config, error) {
	var f file
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil {
		return nil, errors.New(oneLine(err))
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	group, version, _ := strings.Cut(f.APIVersion, "/")
	if f.Kind != "EncryptionConfiguration" || group != "apiserver.config.k8s.io" || version == "" {
		return nil, fmt.Errorf("it is %q of %q, not EncryptionConfiguration of apiserver.config.k8s.io/v1", f.Kind, f.APIVersion)
	}
	if len(f.Resources) == 0 {
		return nil, errors.New("no resources")
	}
	c := &Config{rules: map[stored.GroupResource]*Rule{}, hash: hashOf(data)}
	names := map[string]bool{}
	for i, r := range f.Resources {
		providers, err := providersOf(r.Providers)
		if err != nil {
			return nil, fmt.Errorf("resources[%d]: %w", i, err)
		}
		for _, p := range r.Providers {
			if k := p.KMS; k != nil {
				c.kms = append(c.kms, KMS{k.Name, k.APIVersion, k.Endpoint, k.Timeout, k.CacheSize})
			}
		}
		for _, p := range providers {
			if p.Kind == stored.KMSv2 && names[p.Name] {
				return nil, fmt.Errorf("resources[%d]: the name %q of a kms provider stands twice", i, p.Name)
			}
			names[p.Name] = names[p.Name] || p.Kind == stored.KMSv2
		}
		if len(r.Resources) == 0 {
			return nil, fmt.Errorf("resources[%d]: no resources", i)
		}
		for _, pattern := range r.Resources {
			if err := c.add(pattern, providers); err != nil {
				return nil, fmt.Errorf("resources[%d]: %w", i, err)
			}
		}
	}
	return c, nil
}

// oneLine also keeps what stood in the file, such as a key, out of the error.
func oneLine(err error) string {
	var t *yaml.TypeError
	if !errors.As(err, &t) || len(t.Errors) == 0 {
		s, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "yaml: "), "\n")
		return s
	}
	s := t.Errors[0]
	if before, _, found := strings.Cut(s, " into "); found {
		if i := strings.IndexByte(before, '`'); i >= 0 {
			s = before[:i] + "a value of the wrong type"
		}
	}
	return strings.Join(strings.Fields(s), " ") // a tag may hold line breaks
}

var errProvider = errors.New("each provider has exactly one of kms, aescbc, aesgcm, secretbox, identity")

func providersOf(in []provider) ([]Provider, error) {
	if len(in) == 0 {
		return nil, errors.New("no providers")
	}
	var out []Provider
	for _, p := range in {
		n := len(out)
		kinds := 0
		for _, k := range []struct {
			list *keyList
			kind stored.Kind
		}{{p.AESGCM, stored.AESGCM}, {p.AESCBC, stored.AESCBC}, {p.Secretbox, stored.Secretbox}} {
			if k.list == nil {
				continue
			}
			kinds++
			for _, key := range k.list.Keys {
				out = append(out, Provider{k.kind, key.Name})
			}
		}
		if p.Identity != nil {
			kinds++
			out = append(out, Provider{Kind: stored.Plain})
		}
		if p.KMS != nil {
			kinds++
			kind := stored.KMSv1
			if p.KMS.APIVersion == "v2" {
				kind = stored.KMSv2
			}
			out = append(out, Provider{kind, p.KMS.Name})
		}
		if kinds != 1 {
			return nil, errProvider
		}
		for _, q := range out[n:] {
			if q.Kind != stored.Plain && q.Name == "" {
				return nil, fmt.Errorf("a provider or key of %s has no name", q.Kind)
			}
			if q.Kind == stored.KMSv2 && strings.Contains(q.Name, ":") {
				return nil, fmt.Errorf("the name %q of a kms provider may not hold a colon", q.Name)
			}
		}
		if len(out) == n {
			return nil, errors.New("a provider without keys")
		}
	}
	return out, nil
}

// add takes a pattern. One that an earlier wildcard covers never comes to bear
// (encryptionconfig/config.go, getTransformerOverridesAndKMSPluginHealthzCheckers).
func (c *Config) add(pattern string, providers []Provider) error {
	g := stored.ParseGroupResource(pattern)
	if pattern == "*" || pattern != strings.ToLower(pattern) || g.Resource == "" || g.Group == "*" && g.Resource != "*" {
		return fmt.Errorf("resource %q: write secrets, deployments.apps, *.apps, *. or *.*", pattern)
	}
	if g.Resource != "*" && c.rules[stored.GroupResource{Group: g.Group, Resource: "*"}] != nil || g != anything && c.rules[anything] != nil {
		c.shadowed = append(c.shadowed, pattern)
		return nil
	}
	if r := c.rules[g]; r != nil {
		r.Providers = append(r.Providers, providers...)
		return nil
	}
	r := &Rule{Pattern: pattern, Providers: append([]Provider(nil), providers...)}
	c.rules[g] = r
	c.order = append(c.order, r)
	return nil
}

var anything = stored.GroupResource{Group: "*", Resource: "*"}

// Rules are the rules that can come to bear, in the order of the file.
func (c *Config) Rules() []*Rule { return c.order }

// For finds the rule for a resource, nil if it is written in plain
// (transformerFromOverrides).
func (c *Config) For(g stored.GroupResource) *Rule {
	for _, k := range []stored.GroupResource{g, {Group: g.Group, Resource: "*"}, anything} {
		if r := c.rules[k]; r != nil {
			return r
		}
	}
	return nil
}

// Writes is the provider that a resource is written with; identity if no rule
// names it.
func (c *Config) Writes(g stored.GroupResource) Provider {
	if r := c.For(g); r != nil {
		return r.Providers[0]
	}
	return Provider{Kind: stored.Plain}
}
