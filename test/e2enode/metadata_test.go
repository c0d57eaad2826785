//go:build e2enode

package e2enode

import (
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"

	"kms-plugin.io/test/node"
)

// metadata is the metadata service of all instances. Who asks is known by the
// address, and gets the answers of its own cloud: so the plugin finds its role on a
// node as on EC2, and nothing in its files is of a test.
type metadata struct {
	mu sync.Mutex
	by map[string]*url.URL // address of a node to its instance metadata
}

func serveMetadata() (*metadata, error) {
	m := &metadata{by: map[string]*url.URL{}}
	l, err := net.Listen("tcp", node.MetadataIP+":80")
	if err != nil {
		return nil, err
	}
	go func() { _ = http.Serve(l, m) }() // until the process ends
	return m, nil
}

func (m *metadata) add(n *node.Node, at string) error {
	u, err := url.Parse(at)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.by[n.IP] = u
	return err
}

func (m *metadata) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.RemoteAddr) // of net/http: always valid
	m.mu.Lock()
	to := m.by[host]
	m.mu.Unlock()
	if to == nil {
		http.NotFound(w, r)
		return
	}
	httputil.NewSingleHostReverseProxy(to).ServeHTTP(w, r)
}
