package controlplane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// Client is a small REST client of one API server, as the admin. A Get without
// resourceVersion is read from etcd, not from the watch cache.
type Client struct {
	URL    string
	http   *http.Client
	bearer string
}

// NewClient is a client whose transport proves who it is.
func NewClient(url string, h *http.Client) Client { return Client{URL: url, http: h} }

// trust takes the certificate that the server made for itself.
func (c *Client) trust(path string) error {
	if c.http != nil {
		return nil
	}
	crt, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(crt) {
		return fmt.Errorf("no certificate in %s yet", path)
	}
	c.bearer = "Bearer " + token
	c.http = &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	return nil
}

// Do sends a request of any kind, with JSON.
func (c *Client) Do(ctx context.Context, method, path, json string) ([]byte, error) {
	return c.do(ctx, method, path, []byte(json))
}

func (c *Client) do(ctx context.Context, method, path string, in []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(in))
	if err != nil {
		return nil, err
	}
	if c.bearer != "" {
		req.Header.Set("Authorization", c.bearer)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return body, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(body))
	}
	return body, nil
}

// Text reads a path as text, also when its status is an error.
func (c *Client) Text(ctx context.Context, path string) (string, error) {
	body, err := c.do(ctx, http.MethodGet, path, nil)
	return string(body), err
}

// Secret is what the tests need of a Secret.
type Secret struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name            string `json:"name"`
		Namespace       string `json:"namespace"`
		ResourceVersion string `json:"resourceVersion,omitempty"`
	} `json:"metadata"`
	Data map[string][]byte `json:"data"`
}

const secrets = "/api/v1/namespaces/default/secrets"

// CreateSecret makes a Secret with one entry "v".
func (c *Client) CreateSecret(ctx context.Context, name, value string) (Secret, error) {
	var s Secret
	s.APIVersion, s.Kind, s.Data = "v1", "Secret", map[string][]byte{"v": []byte(value)}
	s.Metadata.Name, s.Metadata.Namespace = name, "default"
	return c.send(ctx, http.MethodPost, secrets, s)
}

// UpdateSecret replaces a Secret.
func (c *Client) UpdateSecret(ctx context.Context, s Secret) (Secret, error) {
	return c.send(ctx, http.MethodPut, secrets+"/"+s.Metadata.Name, s)
}

func (c *Client) send(ctx context.Context, method, path string, s Secret) (Secret, error) {
	in, err := json.Marshal(s)
	if err != nil {
		return Secret{}, err
	}
	body, err := c.do(ctx, method, path, in)
	if err != nil {
		return Secret{}, err
	}
	var out Secret
	return out, json.Unmarshal(body, &out)
}

// GetSecret reads a Secret from etcd.
func (c *Client) GetSecret(ctx context.Context, name string) (Secret, error) {
	body, err := c.do(ctx, http.MethodGet, secrets+"/"+name, nil)
	if err != nil {
		return Secret{}, err
	}
	var out Secret
	return out, json.Unmarshal(body, &out)
}

// ListSecrets reads all Secrets of the namespace from etcd.
func (c *Client) ListSecrets(ctx context.Context) ([]Secret, error) {
	body, err := c.do(ctx, http.MethodGet, secrets, nil)
	if err != nil {
		return nil, err
	}
	var out struct{ Items []Secret }
	return out.Items, json.Unmarshal(body, &out)
}

// Create posts JSON to a path.
func (c *Client) Create(ctx context.Context, path, json string) error {
	_, err := c.do(ctx, http.MethodPost, path, []byte(json))
	return err
}
