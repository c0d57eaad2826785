// Package live reads a running etcd at one revision, page by page, over its
// client port. It makes Range requests only. It knows nothing of the values.
package live

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kms-plugin.io/internal/etcdstore"
)

// Config is how to reach etcd.
type Config struct {
	Endpoints []string // https://host:port; all of one cluster
	CA        string   // PEM files; all empty for http
	Cert      string
	Key       string
	// Compacted is told when a scan starts over because its revision is gone.
	Compacted func(revision int64)
}

// Kubeadm is where kubeadm puts etcd and its client certificate on a
// control-plane node.
func Kubeadm() Config {
	const pki = "/etc/kubernetes/pki/etcd/"
	return Config{Endpoints: []string{"https://127.0.0.1:2379"}, CA: pki + "ca.crt", Cert: pki + "healthcheck-client.crt", Key: pki + "healthcheck-client.key"}
}

// Error is an etcd that cannot be read.
type Error struct {
	Endpoint string
	Reason   string
	Remedy   string
}

func (e *Error) Error() string { return fmt.Sprintf("etcd %s: %s", e.Endpoint, e.Reason) }

// Hint is what to do about it.
func (e *Error) Hint() string { return e.Remedy }

const (
	pageBytes   = 4 << 20  // aim for the size of a page
	maxMessage  = 16 << 20 // of a page, if objects turn out larger than those before; etcd takes 1.5 MiB for one, by default
	firstLimit  = 64
	minLimit    = 8
	maxLimit    = 1_000 // after small objects there may come as many large ones, and etcd has them in memory before it knows
	pageTimeout = 15 * time.Second
	dialTimeout = 5 * time.Second
	maxRestarts = 10
)

// Etcd is a client of one cluster. Close it.
type Etcd struct {
	config  Config
	client  *clientv3.Client
	version string
}

var _ etcdstore.Walker = (*Etcd)(nil)

// Dial asks one endpoint for its version, so that what is wrong with the
// certificates or the address is told in its own words, and returns a client.
// Errors are *Error.
func Dial(ctx context.Context, c Config) (*Etcd, error) {
	if len(c.Endpoints) == 0 {
		return nil, &Error{"", "no endpoint given", "--endpoints https://127.0.0.1:2379"}
	}
	tlsConfig, err := c.tls()
	if err != nil {
		return nil, err
	}
	e := &Etcd{config: c}
	var last error
	for _, endpoint := range c.Endpoints {
		if e.version, last = version(ctx, endpoint, tlsConfig); last == nil {
			break
		}
	}
	if last != nil {
		return nil, last
	}
	e.client, err = clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, TLS: tlsConfig, DialTimeout: dialTimeout, Context: ctx, Logger: zap.NewNop(),
		MaxCallRecvMsgSize: maxMessage, DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
	})
	if err != nil {
		return nil, &Error{c.Endpoints[0], err.Error(), ""}
	}
	return e, nil
}

// Close ends the connections.
func (e *Etcd) Close() error { return e.client.Close() }

func (c Config) tls() (*tls.Config, error) {
	plain := 0
	for _, e := range c.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "unix" || u.Host == "" && u.Path == "" {
			return nil, &Error{e, "not an address of the form https://host:port", "--endpoints https://127.0.0.1:2379"}
		}
		if u.Scheme != "https" {
			plain++
		}
	}
	if plain == len(c.Endpoints) {
		return nil, nil
	}
	if plain > 0 {
		return nil, &Error{strings.Join(c.Endpoints, ","), "some endpoints are https and some are not", ""}
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, &Error{c.Endpoints[0], fmt.Sprintf("CA certificate: %v", err), "--cacert FILE"}
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &Error{c.Endpoints[0], fmt.Sprintf("no certificate in %q", c.CA), "--cacert FILE"}
		}
	}
	if c.Cert != "" || c.Key != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, &Error{c.Endpoints[0], fmt.Sprintf("client certificate: %v", err), "--cert FILE --key FILE"}
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// version does what gRPC cannot: it reports why a handshake failed.
func version(ctx context.Context, endpoint string, t *tls.Config) (string, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme == "unix" {
		return "", nil
	}
	client := &http.Client{Timeout: dialTimeout, Transport: &http.Transport{TLSClientConfig: t, DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(endpoint, "/")+"/version", nil)
	if err != nil {
		return "", &Error{endpoint, err.Error(), ""}
	}
	resp, err := client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return "", &Error{endpoint, err.Error(), "is it running, and are --cacert, --cert and --key those of etcd, not of kube-apiserver? kubeadm keeps them in /etc/kubernetes/pki/etcd"}
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	_, v, isEtcd := strings.Cut(string(body), `"etcdserver":"`)
	if !isEtcd || resp.StatusCode != http.StatusOK {
		return "", &Error{endpoint, fmt.Sprintf("it answers %s to /version, and not as etcd does", resp.Status), "give client URLs of etcd, with https if it has certificates"}
	}
	v, _, _ = strings.Cut(v, `"`)
	return v, nil
}

func (e *Etcd) explain(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrUserEmpty):
		return &Error{e.config.Endpoints[0], err.Error(), "the certificate needs a role that may read all keys"}
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.Unavailable, status.Code(err) == codes.DeadlineExceeded:
		return &Error{strings.Join(e.config.Endpoints, ","), fmt.Sprintf("it went away while it was read: %v", err), "look at it: etcdctl endpoint health"}
	}
	return err
}

// Get reads one value from the quorum, nil if there is none.
func (e *Etcd) Get(ctx context.Context, key string) ([]byte, error) {
	r, err := e.client.Get(ctx, key)
	if err != nil || len(r.Kvs) == 0 {
		return nil, e.explain(ctx, err)
	}
	return r.Kvs[0].Value, nil
}
