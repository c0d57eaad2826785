package node

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
)

// Addresses of the network that all nodes are on.
const (
	Gateway = "10.99.0.1"
	// CloudIP is where the SDK accepts a credentials endpoint without TLS beside
	// loopback (aws-sdk-go-v2 config, isAllowedHost). It is ours, as the gateway.
	CloudIP = "169.254.170.23"
)

// LAN is the network between the nodes, and this process on it.
type LAN struct {
	dir   string
	path  string
	nodes atomic.Int32
}

// NewLAN makes the network. Programs of the nodes are looked for in bin first.
func NewLAN(bin string) (*LAN, error) {
	if err := settle(); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"link", "add", "name", "lan", "type", "bridge"},
		{"addr", "add", Gateway + "/24", "dev", "lan"},
		{"addr", "add", CloudIP + "/32", "dev", "lan"},
		{"link", "set", "dev", "lan", "up"},
	} {
		if err := ip(args...); err != nil {
			return nil, err
		}
	}
	return &LAN{dir: Dir(), path: bin + ":" + os.Getenv("PATH")}, nil
}

// attach gives a process' network namespace its eth0.
func (l *LAN) attach(port string, pid int) error {
	if err := ip("link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(pid)); err != nil {
		return err
	}
	if err := ip("link", "set", "dev", port, "master", "lan"); err != nil {
		return err
	}
	return ip("link", "set", "dev", port, "up")
}

// nextIP is the address of the next node.
func (l *LAN) nextIP() string {
	return fmt.Sprintf("10.99.0.%d", 9+l.nodes.Add(1))
}
