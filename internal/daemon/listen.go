package daemon

import (
	"fmt"
	"net"
	"os"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/unixsocket"
)

func listenSocket(path string, passed *os.File) (net.Listener, error) {
	if passed != nil {
		return unixsocket.Adopt(passed, path)
	}
	return unixsocket.Listen(path)
}

func listenHTTP(addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, cli.WithHint(fmt.Errorf("listenAddress: %w", err), "choose a free port, or listenAddress: \"\" for none")
	}
	return ln, nil
}

func address(ln net.Listener) string {
	if ln == nil {
		return ""
	}
	return ln.Addr().String()
}
