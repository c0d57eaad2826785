package live

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority makes a CA and certificates of it, as files.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.key = a.newKey()
	a.cert = a.sign("ca", a.key, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	return a
}

func (a *authority) newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return k
}

func (a *authority) sign(name string, k *ecdsa.PrivateKey, c, parent *x509.Certificate) *x509.Certificate {
	a.t.Helper()
	c.SerialNumber, c.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent = c
	}
	raw, err := x509.CreateCertificate(rand.Reader, c, parent, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".crt", "CERTIFICATE", raw)
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(name+".key", "EC PRIVATE KEY", der)
	out, err := x509.ParseCertificate(raw)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

func (a *authority) write(name, kind string, raw []byte) {
	if err := os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) leaf(name string, usage x509.ExtKeyUsage) {
	a.sign(name, a.newKey(), &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{usage}}, a.cert)
}

// What is wrong with the certificates is told in words, not as a deadline.
func TestDialTellsTheCause(t *testing.T) {
	right, wrong := newAuthority(t), newAuthority(t)
	right.leaf("server", x509.ExtKeyUsageServerAuth)
	right.leaf("client", x509.ExtKeyUsageClientAuth)
	wrong.leaf("client", x509.ExtKeyUsageClientAuth)
	pair, err := tls.LoadX509KeyPair(right.file("server.crt"), right.file("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(right.cert)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"etcdserver":"3.7.3","etcdcluster":"3.7.0"}`))
	}))
	s.Config.ErrorLog = nil
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
	s.StartTLS()
	defer s.Close()
	ca, crt, key := right.file("ca.crt"), right.file("client.crt"), right.file("client.key")
	good := Config{Endpoints: []string{s.URL}, CA: ca, Cert: crt, Key: key}
	e, err := Dial(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	if e.version != "3.7.3" {
		t.Errorf("version %q", e.version)
	}
	_ = e.Close()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for name, tt := range map[string]struct {
		c    Config
		want string
	}{
		"other CA":               {Config{good.Endpoints, wrong.file("ca.crt"), crt, key, nil}, "unknown authority"},
		"client of another CA":   {Config{good.Endpoints, ca, wrong.file("client.crt"), wrong.file("client.key"), nil}, "certificate"},
		"no client certificate":  {Config{good.Endpoints, ca, "", "", nil}, "certificate"},
		"key of another":         {Config{good.Endpoints, ca, crt, wrong.file("client.key"), nil}, "private key does not match"},
		"missing certificate":    {Config{good.Endpoints, ca, right.file("none"), key, nil}, "no such file"},
		"missing CA":             {Config{good.Endpoints, right.file("none"), crt, key, nil}, "no such file"},
		"CA without certificate": {Config{good.Endpoints, key, crt, key, nil}, "no certificate"},
		"http to https":          {Config{[]string{strings.Replace(s.URL, "https", "http", 1)}, "", "", "", nil}, ""},
		"nobody there":           {Config{[]string{closed.URL}, "", "", "", nil}, "refused"},
		"none":                   {Config{}, "no endpoint"},
		"no URL":                 {Config{[]string{"127.0.0.1:2379"}, "", "", "", nil}, "https://host:port"},
		"mixed":                  {Config{[]string{s.URL, closed.URL}, ca, crt, key, nil}, "some are not"},
	} {
		e, err := Dial(t.Context(), tt.c)
		var told *Error
		if err == nil {
			_ = e.Close()
		}
		if name == "http to https" && err == nil {
			t.Errorf("%s: taken", name)
		} else if !errors.As(err, &told) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	second := good
	second.Endpoints = []string{strings.Replace(closed.URL, "http", "https", 1), s.URL}
	if e, err := Dial(t.Context(), second); err != nil {
		t.Errorf("the first of two endpoints is away: %v", err)
	} else {
		_ = e.Close()
	}
}
