package awskms

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/ssocreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"kms-plugin.io/pkg/keys"
)

// newCredentials finds the source of credentials that the SDK's chain would take
// (environment, shared configuration files, container, instance role) and asks
// nobody yet. Long-lived keys are refused here, wherever in the chain they are.
func newCredentials(ctx context.Context, c Config, region string) (*store, aws.Config, error) {
	cfg, err := loadChain(ctx, c, region)
	if err != nil {
		return nil, cfg, err
	}
	about := describe(cfg)
	if static := longLived(cfg, about); static != "" && !c.AllowStaticCredentials {
		return nil, cfg, &ConfigError{Reason: static + " is a credential that nothing renews, and it would win over every role",
			Remedy: "remove it and use a workload identity (instance role, Roles Anywhere), or set allowStaticCredentials: true for this key"}
	}
	if isToken(tokenFile(cfg, about.Kind)) { // which every message would quote as a path
		return nil, cfg, &ConfigError{Reason: "a token stands where the path of the file with it is wanted (AWS_WEB_IDENTITY_TOKEN_FILE, web_identity_token_file)",
			Remedy: "write the token to a file of mode 0600 and give its path; consider the token as known to whoever saw this environment"}
	}
	fetch := func(ctx context.Context) (aws.Credentials, error) { return retrieve(ctx, cfg.Credentials) }
	if _, profile := sources(cfg); c.Broker != nil && (about.Kind == "process" || about.Kind == "assume-role" && startsProgram(profile)) {
		fetch = func(ctx context.Context) (aws.Credentials, error) {
			return c.Broker.fetch(ctx, brokering{Region: region, CABundle: c.CABundle, Proxy: c.Proxy})
		}
	} else if cache, ok := cfg.Credentials.(*aws.CredentialsCache); ok {
		fetch = func(ctx context.Context) (aws.Credentials, error) {
			cache.Invalidate() // it is asked only for new ones; store keeps them
			return retrieve(ctx, cache)
		}
	}
	return newStore(fetch, about, c.AllowStaticCredentials), cfg, nil
}

func loadChain(ctx context.Context, c Config, region string) (aws.Config, error) {
	h, err := credentialHTTP(c)
	if err != nil {
		return aws.Config{}, err
	}
	base := []func(*config.LoadOptions) error{config.WithRegion(region), config.WithHTTPClient(h)}
	cfg, err := config.LoadDefaultConfig(ctx, base...)
	if err == nil {
		// IMDSv1 answers whoever can make the node send a GET, so it is never asked.
		role := imds.NewFromConfig(cfg, func(o *imds.Options) { o.EnableFallback = aws.FalseTernary })
		_, profile := sources(cfg)
		own := newProgram(commandLine(profile))
		chain, starts := chained(cfg, own)
		cfg, err = config.LoadDefaultConfig(ctx, append(append(base, chain...),
			config.WithEC2RoleCredentialOptions(func(o *ec2rolecreds.Options) { o.Client = role }),
			config.WithEndpointCredentialOptions(func(o *endpointcreds.Options) { o.HTTPClient = h }),
			config.WithCredentialsCacheOptions(func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = 0 }),
		)...)
		if *starts && err == nil && aws.IsCredentialsProvider(cfg.Credentials, own.Provider) {
			cfg.Credentials = aws.NewCredentialsCache(own)
		}
	}
	if err != nil {
		return cfg, &ConfigError{Reason: fmt.Sprintf("AWS configuration of this host: %v", err), Remedy: "look at ~/.aws/config and the AWS_* environment of the service"}
	}
	return cfg, nil
}

// credentialHTTP is the client for sources: proxy and roots are those of the key,
// but what is on this node or link is asked directly.
func credentialHTTP(c Config) (*http.Client, error) {
	h, err := httpClient(c)
	if err != nil {
		return nil, err
	}
	h.Timeout = fetchTimeout
	t, ok := h.Transport.(*http.Transport)
	if !ok || t.Proxy == nil {
		return h, nil
	}
	proxy := t.Proxy
	t.Proxy = func(r *http.Request) (*url.URL, error) {
		if local(r.URL.Hostname()) {
			return nil, nil
		}
		return proxy(r)
	}
	return h, nil
}

// local addresses serve credentials of instances and containers
// (fd00:ec2::254 and fd00:ec2::23 are unique local).
func local(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsPrivate() && ip.To4() == nil)
}

// sources are the environment and the profile that a configuration came from.
func sources(cfg aws.Config) (env config.EnvConfig, profile config.SharedConfig) {
	for _, s := range cfg.ConfigSources {
		switch s := s.(type) {
		case config.EnvConfig:
			env = s
		case config.SharedConfig:
			profile = s
		}
	}
	return env, profile
}

// describe names the source without asking it. Of a command line only the program
// is told, of an endpoint only the host: the rest may be secret.
func describe(cfg aws.Config) keys.Credential {
	env, profile := sources(cfg)
	first := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	for _, k := range []struct {
		target       aws.CredentialsProvider
		kind, source string
	}{
		{&ec2rolecreds.Provider{}, "instance-role", first(env.EC2IMDSEndpoint, "imds")},
		{&endpointcreds.Provider{}, "container", containerHost(env)},
		{&stscreds.WebIdentityRoleProvider{}, "web-identity", tokenFile(cfg, "web-identity")},
		{&stscreds.AssumeRoleProvider{}, "assume-role", profile.RoleARN},
		{&processcreds.Provider{}, "process", program(profile.CredentialProcess)},
		{&ssocreds.Provider{}, "sso", "profile " + profile.Profile},
		{credentials.StaticCredentialsProvider{}, "static", staticSource(env, profile)},
	} {
		if aws.IsCredentialsProvider(cfg.Credentials, k.target) {
			return keys.Credential{Kind: k.kind, Source: k.source}
		}
	}
	return keys.Credential{Kind: "other", Source: "unknown"}
}

func containerHost(env config.EnvConfig) string {
	u, err := url.Parse(env.ContainerCredentialsEndpoint)
	if env.ContainerCredentialsRelativePath != "" || err != nil {
		return "169.254.170.2"
	}
	return u.Host
}

// program is the first word of a command line, quoted or not, without its path.
func program(commandLine string) string {
	s := strings.TrimSpace(commandLine)
	if rest, quoted := strings.CutPrefix(s, `"`); quoted {
		s, _, _ = strings.Cut(rest, `"`)
	} else if fields := strings.Fields(s); len(fields) > 0 {
		s = fields[0]
	}
	return filepath.Base(s)
}

func staticSource(env config.EnvConfig, profile config.SharedConfig) string {
	if env.Credentials.HasKeys() {
		return "environment"
	}
	return "profile " + profile.Profile
}

// longLived names the long-lived keys that a chain is built on, "" for none: at its
// end, or under a role that is assumed with them.
func longLived(cfg aws.Config, about keys.Credential) string {
	env, profile := sources(cfg)
	switch about.Kind {
	case "static":
		if env.Credentials.HasKeys() {
			return "the access key in the environment (AWS_ACCESS_KEY_ID)"
		}
		return fmt.Sprintf("the access key of profile %q", profile.Profile)
	case "assume-role":
		for p := &profile; p != nil; p = p.Source {
			if p.Source == nil && strings.EqualFold(p.CredentialSource, "Environment") {
				return "the access key in the environment (AWS_ACCESS_KEY_ID), source of " + profile.RoleARN
			}
			if p.Source == nil && p.Credentials.HasKeys() {
				return fmt.Sprintf("the access key of profile %q, source of %s", p.Profile, profile.RoleARN)
			}
		}
	}
	return ""
}

var errEnded = errors.New("the source hands out a credential that has ended already: it is behind, or the clock of this node is ahead")
