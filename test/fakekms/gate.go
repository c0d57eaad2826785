package fakekms

import (
	"net"
	"sync"
)

// gate is a listener that can refuse, swallow and cut connections, and come back
// on the same address.
type gate struct {
	net.Listener
	onAccept func()

	mu      sync.Mutex
	conns   map[net.Conn]bool
	refuse  bool
	hole    bool
	closed  bool
	release chan struct{}
}

// Accept implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		if g.refuse {
			g.mu.Unlock()
			reset(c)
			continue
		}
		g.conns[c] = true
		g.mu.Unlock()
		g.onAccept()
		return &gated{Conn: c, gate: g}, nil
	}
}

// gated is a connection that can fall silent.
type gated struct {
	net.Conn
	gate *gate
}

// Read holds data back while the gate is a black hole.
func (c *gated) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.gate.wait()
	return n, err
}

// Write holds answers back while the gate is a black hole.
func (c *gated) Write(b []byte) (int, error) {
	c.gate.wait()
	return c.Conn.Write(b)
}

// Close implements net.Conn.
func (c *gated) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c.Conn)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}

func (g *gate) wait() {
	g.mu.Lock()
	release := g.release
	hole := g.hole && !g.closed
	g.mu.Unlock()
	if hole {
		<-release
	}
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	if g.hole {
		g.hole = false
		close(g.release)
	}
}

func (g *gate) refuseAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse = true
	for c := range g.conns {
		reset(c)
		delete(g.conns, c)
	}
}

func (g *gate) listen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse = false
}

func (g *gate) swallow() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.hole {
		g.hole, g.release = true, make(chan struct{})
	}
}

func (g *gate) unswallow() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.hole {
		g.hole = false
		close(g.release)
	}
}

// reset closes with RST.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
