package awskms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// kmsAPI is all that is used of the SDK's client.
type kmsAPI interface {
	Encrypt(context.Context, *kms.EncryptInput, ...func(*kms.Options)) (*kms.EncryptOutput, error)
	Decrypt(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error)
}

const (
	// dialTimeout and tlsTimeout leave an attempt (attemptTimeout) time to ask.
	dialTimeout = 500 * time.Millisecond
	tlsTimeout  = 700 * time.Millisecond
	// maxConns bounds connections to one endpoint. All of them may idle, so that
	// a burst costs no second handshake.
	maxConns    = 128
	idleTimeout = 90 * time.Second
	// expiryWindow renews a credential this long before it ends, some of it at
	// random, so that a failing source is seen before calls fail.
	expiryWindow = 5 * time.Minute
)

// newClient makes a client for one region. It reads the shared configuration
// files and the environment for the source of credentials, and calls nothing.
func newClient(ctx context.Context, c Config, region string) (kmsAPI, error) {
	h, err := httpClient(c)
	if err != nil {
		return nil, err
	}
	cfg, err := loadConfig(ctx, c, region, h)
	if err != nil {
		return nil, err
	}
	return kmsClient(cfg, c), nil
}

// loadConfig is the SDK's configuration with ours in force.
func loadConfig(ctx context.Context, c Config, region string, h *http.Client) (aws.Config, error) {
	cfg, err := config.LoadDefaultConfig(ctx,
		config.WithRegion(region),
		config.WithHTTPClient(h),
		config.WithCredentialsCacheOptions(func(o *aws.CredentialsCacheOptions) {
			o.ExpiryWindow, o.ExpiryWindowJitterFrac = expiryWindow, 0.5
		}),
	)
	if err != nil {
		return cfg, &ConfigError{Reason: fmt.Sprintf("AWS configuration of this host: %v", err), Remedy: "look at ~/.aws/config and the AWS_* environment of the service"}
	}
	cfg.Credentials = aws.NewCredentialsCache(guard{source: cfg.Credentials, allowStatic: c.AllowStaticCredentials})
	return cfg, nil
}

func kmsClient(cfg aws.Config, c Config) *kms.Client {
	return kms.NewFromConfig(cfg, func(o *kms.Options) {
		o.Credentials = cfg.Credentials
		o.HTTPClient = cfg.HTTPClient
		o.Retryer = aws.NopRetryer{} // attempts are ours: see attempt.go
		o.BaseEndpoint = nil
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
	})
}

// httpClient takes proxy and roots from the configuration alone.
func httpClient(c Config) (*http.Client, error) {
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: tlsTimeout,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		MaxConnsPerHost:     maxConns,
		MaxIdleConnsPerHost: maxConns,
		IdleConnTimeout:     idleTimeout,
	}
	if c.Proxy != "" {
		u, err := url.Parse(c.Proxy)
		if err != nil {
			return nil, &ConfigError{Reason: fmt.Sprintf("proxy %q is not a URL", c.Proxy)}
		}
		t.Proxy = http.ProxyURL(u)
	}
	if c.CABundle != "" {
		pem, err := os.ReadFile(c.CABundle)
		if err != nil {
			return nil, &ConfigError{Reason: fmt.Sprintf("caBundle: %v", err), Remedy: "name a readable PEM file"}
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &ConfigError{Reason: fmt.Sprintf("caBundle %q holds no certificate", c.CABundle), Remedy: "name a PEM file of certificates"}
		}
	}
	return &http.Client{Transport: t}, nil
}

// guard refuses long-lived credentials: one left in the environment would win
// over the role of the node without anyone noticing.
type guard struct {
	source      aws.CredentialsProvider
	allowStatic bool
}

func (g guard) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := g.source.Retrieve(ctx)
	if err != nil {
		return c, &credentialError{err}
	}
	if !g.allowStatic && !c.CanExpire && c.SessionToken == "" {
		return aws.Credentials{}, &credentialError{fmt.Errorf("%w (source %s)", errStatic, c.Source)}
	}
	return c, nil
}
