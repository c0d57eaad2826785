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
)

// newClient makes a client for the region of cfg. It calls nothing.
func newClient(cfg aws.Config, c Config, credentials aws.CredentialsProvider) (kmsAPI, error) {
	h, err := httpClient(c)
	if err != nil {
		return nil, err
	}
	cfg.Credentials, cfg.HTTPClient = credentials, h
	return kmsClient(cfg, c), nil
}

func kmsClient(cfg aws.Config, c Config) *kms.Client {
	return kms.NewFromConfig(cfg, func(o *kms.Options) {
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
