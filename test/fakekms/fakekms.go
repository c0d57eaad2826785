// Package fakekms is an AWS KMS for tests and for a person at a laptop. The real
// SDK talks to it in the real protocol (awsJson1.1 over HTTP); it really
// encrypts, keeps old materials, enforces encryption contexts and key policies,
// and has knobs for every way in which a cloud fails.
//
// What it does not model: signatures are not verified (access key, token and
// date are), IAM policies beside the key policy, grants, asymmetric operations,
// custom key stores, imported material, and the quotas of single operations.
package fakekms

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"
)

// Config is what a fake starts with.
type Config struct {
	Addr    string // host:port, "" takes a free port of 127.0.0.1
	TLS     bool
	Account string // default 111122223333
	// CredentialsAddr is host:port of the credentials endpoint, "" takes a free port
	// of 127.0.0.1. Beside loopback the SDK accepts 169.254.170.2 and .23 for it.
	CredentialsAddr string
}

// Server is a running fake. One listener serves all regions: the region of a
// request is the one it was signed for. Region gives one a listener of its own.
type Server struct {
	account string
	http    *httptest.Server
	plain   *httptest.Server // credentials: their endpoint is always plain HTTP on a node
	gate    *gate

	mu         sync.Mutex
	keys       map[string]*key // by region and id
	aliases    map[string]string
	principals map[string]*principal // by access key id
	faults     []*Fault
	nextFault  int
	quota      quota
	view       func(caller string, call int, history []string) int
	clock      time.Duration
	counts     Counts
	log        []Request
	inFlight   int
	regions    map[string]*Region
}

// Start starts a fake. The principal "default" exists and may do everything.
func Start(c Config) (*Server, error) {
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	if c.CredentialsAddr == "" {
		c.CredentialsAddr = "127.0.0.1:0"
	}
	if c.Account == "" {
		c.Account = "111122223333"
	}
	ln, err := net.Listen("tcp", c.Addr)
	if err != nil {
		return nil, err
	}
	credentials, err := net.Listen("tcp", c.CredentialsAddr)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	s := &Server{account: c.Account, gate: &gate{Listener: ln, conns: map[net.Conn]bool{}},
		keys: map[string]*key{}, aliases: map[string]string{}, principals: map[string]*principal{}, regions: map[string]*Region{}}
	s.counts.reset()
	s.AddPrincipal("default")
	s.http = &httptest.Server{Listener: s.gate, Config: &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}}
	s.gate.onAccept = s.countConnection
	s.plain = &httptest.Server{Listener: credentials, Config: &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}}
	s.plain.Start()
	s.http.Config.ErrorLog = log.New(io.Discard, "", 0)
	if c.TLS {
		s.http.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		s.http.StartTLS()
	} else {
		s.http.Start()
	}
	return s, nil
}

// URL is the endpoint for every region.
func (s *Server) URL() string { return s.http.URL }

// Close stops the fake at once.
func (s *Server) Close() {
	s.gate.close()
	s.http.CloseClientConnections()
	s.http.Close()
	s.closeRegions()
	s.plain.Close()
}

// SetClock moves the fake's clock against the real one: requests dated more than
// five minutes away from it are refused, and credentials begin and end by it.
func (s *Server) SetClock(offset time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = offset
}

// now is the time as the fake sees it, which its Date headers tell.
func (s *Server) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.time()
}

// time is now; mu is held.
func (s *Server) time() time.Time { return time.Now().Add(s.clock) }

// SetConsistency makes wraps after a rotation eventually consistent: fn chooses
// an index of the key's material history for the caller's n-th Encrypt. Nil is
// always the newest.
func (s *Server) SetConsistency(fn func(caller string, call int, history []string) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view = fn
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// Refuse cuts all connections and resets new ones at once.
func (s *Server) Refuse() { s.gate.refuseAll() }

// Listen ends Refuse.
func (s *Server) Listen() { s.gate.listen() }

// Blackhole takes requests, on old connections and new, and never answers.
func (s *Server) Blackhole() { s.gate.swallow() }

// Unblackhole ends Blackhole; what was held back goes on.
func (s *Server) Unblackhole() { s.gate.unswallow() }

var errNoKey = errors.New("no such key")

// CABundlePEM is the certificate of a fake with TLS, to be trusted.
func (s *Server) CABundlePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
}
