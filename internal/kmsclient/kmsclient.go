// Package kmsclient speaks KMS v2 to a plugin's socket, as kube-apiserver does. It
// must not know what is asked for, or why.
package kmsclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/pkg/keys"
)

// Timeout is what kube-apiserver gives a call by default.
const Timeout = 3 * time.Second

// Client is a connection. It is safe for concurrent use. Close it.
type Client struct {
	socket string
	conn   *grpc.ClientConn
	api    kmsapi.KeyManagementServiceClient
}

// Dial finds the faults that gRPC only reports as a missed deadline; it does not
// connect yet.
func Dial(socket string) (*Client, error) {
	if err := reachable(socket); err != nil {
		return nil, err
	}
	// Not unix:// and the path: a path is no URL, and may hold any character.
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	conn, err := grpc.NewClient("passthrough:///socket", grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		return nil, err
	}
	return &Client{socket, conn, kmsapi.NewKeyManagementServiceClient(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Status asks what kube-apiserver asks every minute. Errors have a gRPC status,
// but for that of a socket nobody serves.
func (c *Client) Status(ctx context.Context) (*kmsapi.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	r, err := c.api.Status(ctx, &kmsapi.StatusRequest{})
	return r, c.served(err)
}

// Decrypt opens one DEK source. Destroy what it returns.
func (c *Client) Decrypt(ctx context.Context, r *kmsapi.DecryptRequest) (keys.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	out, err := c.api.Decrypt(ctx, r)
	return out.GetPlaintext(), c.served(err)
}

func (c *Client) served(err error) error {
	if err != nil && strings.Contains(status.Convert(err).Message(), "connection refused") {
		return cli.WithHint(fmt.Errorf("nobody serves socket %q", c.socket), "start the plugin: systemctl status kms-plugin, or crictl ps")
	}
	return err
}

func reachable(socket string) error {
	info, err := os.Stat(socket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cli.WithHint(fmt.Errorf("there is no socket %q", socket), "is the plugin running, and is this socket.path of its configuration?")
	case errors.Is(err, fs.ErrPermission):
		return cli.WithHint(fmt.Errorf("socket %q may not be opened by this user", socket), "run it as root, or as the user of kube-apiserver")
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return cli.WithHint(fmt.Errorf("%q is not a socket", socket), "give socket.path of the plugin's configuration")
	}
	return nil
}
