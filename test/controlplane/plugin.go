package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"
)

// Plugin is one running kms-plugin.
type Plugin struct {
	process
	Socket string
}

// NewPlugin prepares a plugin; args are those of kms-plugin, env its extra
// environment. Restart starts it.
func NewPlugin(b Bin, dir, name, socket string, env []string, args ...string) *Plugin {
	return &Plugin{Socket: socket, process: process{name: name, path: b.Plugin, log: logPath(dir, name), env: plainEnv(env...), args: args}}
}

// NewNodePlugin prepares a plugin that sees home as /run/kms-plugin, so that every
// node of a test can have the very same configuration.
func NewNodePlugin(b Bin, home, name string, env []string) *Plugin {
	p := NewPlugin(b, home, name, filepath.Join(home, "kms.sock"), env, "serve", "--config", "/run/kms-plugin/config.yaml")
	flags := "--mount"
	if os.Geteuid() != 0 {
		flags = "-Urm"
	}
	p.apart(flags, "mount -t tmpfs tmpfs /run; mkdir -m 700 /run/kms-plugin; mount --bind "+home+" /run/kms-plugin")
	return p
}

// Program changes the program that the next Restart starts.
func (p *Plugin) Program(path string, env ...string) {
	p.path = path
	p.env = append(p.env, env...)
}

// Restart starts it and waits until its socket answers, be it with an error.
func (p *Plugin) Restart(ctx context.Context) error {
	if err := p.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := Poll(ctx, 20*time.Millisecond, func(ctx context.Context) error {
		if !p.Alive() {
			return errors.New("kms-plugin ended")
		}
		_, err := p.Status(ctx)
		if err != nil && strings.Contains(err.Error(), "dial unix") {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.Tail())
	}
	return nil
}

// Dial opens a connection as kube-apiserver does.
func (p *Plugin) Dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+p.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
}

// Status calls Status.
func (p *Plugin) Status(ctx context.Context) (*kmsapi.StatusResponse, error) {
	conn, err := p.Dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return kmsapi.NewKeyManagementServiceClient(conn).Status(ctx, &kmsapi.StatusRequest{})
}

// Decrypt calls Decrypt.
func (p *Plugin) Decrypt(ctx context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	conn, err := p.Dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return kmsapi.NewKeyManagementServiceClient(conn).Decrypt(ctx, r)
}

var httpAddress = regexp.MustCompile(`"http":"([^"]+)"`)

// HTTP is the address of the plugin's HTTP listener, "" if it has not said.
func (p *Plugin) HTTP() string {
	m := httpAddress.FindAllStringSubmatch(p.Log(), -1)
	if m == nil {
		return ""
	}
	return m[len(m)-1][1]
}

// Get reads a path of the plugin's HTTP listener.
func (p *Plugin) Get(ctx context.Context, path string) (string, error) {
	address := p.HTTP()
	if address == "" {
		return "", errors.New("the plugin has not said where it listens")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), err
}
