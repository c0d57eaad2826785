package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// ErrPeer is returned when a peer is not on the allow-list.
var ErrPeer = errors.New("peer is not allowed")

// ErrFull is returned when MaxConnections are open.
var ErrFull = errors.New("too many connections are open")

// MaxConnections bounds the memory and descriptors that peers can take. An API
// server has one connection for each provider of its configuration, kmsctl and
// probes one each for a moment.
const MaxConnections = 64

// Peer is who connected, as the kernel says (SO_PEERCRED, unix(7)). The ids are
// those of the server's user namespace; the pid is 0 for another pid namespace.
type Peer struct {
	credentials.CommonAuthInfo
	UID uint32
	PID int32
}

// AuthType implements credentials.AuthInfo.
func (Peer) AuthType() string { return "SO_PEERCRED" }

// PeerCredentials lets only the uids of the list, and our own, past the
// handshake. It encrypts nothing: the bytes never leave the kernel.
type PeerCredentials struct {
	allowed []uint32
	refused func(Peer, error)
	open    *atomic.Int32
}

var _ credentials.TransportCredentials = (*PeerCredentials)(nil)

// NewPeerCredentials calls refused, from any goroutine, for each peer it sends
// away, with ErrPeer or ErrFull: the peer itself sees only a closed connection.
func NewPeerCredentials(allowed []uint32, refused func(Peer, error)) *PeerCredentials {
	return &PeerCredentials{allowed: append([]uint32{uint32(os.Geteuid())}, allowed...), refused: refused, open: &atomic.Int32{}}
}

// counted is an open connection of an allowed peer.
type counted struct {
	net.Conn
	once sync.Once
	open *atomic.Int32
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// ServerHandshake implements credentials.TransportCredentials.
func (p *PeerCredentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	peer, err := peerOf(c)
	if err != nil {
		_ = c.Close()
		return nil, nil, err
	}
	if !slices.Contains(p.allowed, peer.UID) {
		_ = c.Close()
		err := fmt.Errorf("%w: uid %d", ErrPeer, peer.UID)
		p.refused(peer, err)
		return nil, nil, err
	}
	if p.open.Add(1) > MaxConnections {
		p.open.Add(-1)
		_ = c.Close()
		err := fmt.Errorf("%w: %d", ErrFull, MaxConnections)
		p.refused(peer, err)
		return nil, nil, err
	}
	return &counted{Conn: c, open: p.open}, peer, nil
}

func peerOf(c net.Conn) (Peer, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("%w: not a unix socket", ErrPeer)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if credErr != nil {
		return Peer{}, fmt.Errorf("read the credentials of a peer: %w", credErr)
	}
	return Peer{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, UID: cred.Uid, PID: cred.Pid}, nil
}

// ClientHandshake implements credentials.TransportCredentials; servers only.
func (*PeerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for servers")
}

// Info implements credentials.TransportCredentials.
func (*PeerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "SO_PEERCRED"}
}

// Clone implements credentials.TransportCredentials.
func (p *PeerCredentials) Clone() credentials.TransportCredentials {
	return &PeerCredentials{allowed: p.allowed, refused: p.refused, open: p.open}
}

// OverrideServerName implements credentials.TransportCredentials.
func (*PeerCredentials) OverrideServerName(string) error { return nil }

// Server tells who listens on the socket at path, as the kernel remembers it: the
// process that bound it, which is systemd for a socket that it holds.
func Server(path string) (Peer, error) {
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err != nil {
		return Peer{}, err
	}
	defer c.Close()
	return peerOf(c)
}
