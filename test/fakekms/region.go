package fakekms

import (
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"time"
)

// Region is one region with an endpoint of its own, which can go away alone. Keys
// and replicas in it have their own state and policy in any case.
type Region struct {
	http *httptest.Server
	gate *gate
}

// Region opens the endpoint of a region, or finds it. It is plain HTTP.
func (s *Server) Region(name string) (*Region, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.regions[name]; r != nil {
		return r, nil
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Region{gate: &gate{Listener: ln, conns: map[net.Conn]bool{}, onAccept: s.countConnection}}
	h := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if got := signedFor(req); got != name {
			writeFailure(w, "", refuse("InvalidSignatureException", "Credential should be scoped to a valid region, not '"+got+"'."))
			return
		}
		s.ServeHTTP(w, req)
	})
	r.http = &httptest.Server{Listener: r.gate, Config: &http.Server{Handler: h, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}}
	r.http.Start()
	s.regions[name] = r
	return r, nil
}

// URL is the endpoint.
func (r *Region) URL() string { return r.http.URL }

// Refuse cuts all connections to the region and resets new ones at once.
func (r *Region) Refuse() { r.gate.refuseAll() }

// Listen ends Refuse.
func (r *Region) Listen() { r.gate.listen() }

// Blackhole takes requests to the region and never answers.
func (r *Region) Blackhole() { r.gate.swallow() }

// Unblackhole ends Blackhole; what was held back goes on.
func (r *Region) Unblackhole() { r.gate.unswallow() }

func (s *Server) closeRegions() {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.regions))
	s.mu.Unlock()
	for _, r := range all { // their handlers wait for mu
		r.gate.close()
		r.http.CloseClientConnections()
		r.http.Close()
	}
}
