package node

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"
)

// Addresses of the network that all nodes are on.
const (
	Gateway = "10.99.0.1"
	// MetadataIP is that of the metadata service of EC2 instances. It is ours too.
	MetadataIP = "169.254.169.254"
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
		{"addr", "add", MetadataIP + "/32", "dev", "lan"},
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

// detach pulls the cable of a machine that is gone. The kernel does it as well, but
// some time after the last process: it tidies network namespaces in the background,
// and a connection that is still being closed keeps its own alive.
func (l *LAN) detach(port string) error {
	if !attached(port) {
		return nil
	}
	if err := ip("link", "del", "dev", port); err != nil && attached(port) {
		return err
	}
	return nil
}

func attached(port string) bool {
	_, err := net.InterfaceByName(port)
	return err == nil
}

// nextIP is the address of the next node.
func (l *LAN) nextIP() string {
	return fmt.Sprintf("10.99.0.%d", 9+l.nodes.Add(1))
}
