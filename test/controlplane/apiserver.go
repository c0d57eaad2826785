package controlplane

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const token = "admintoken"

// APIServer is one kube-apiserver.
type APIServer struct {
	process
	Client
	CertDir string
}

// Provider is one KMS v2 provider of an EncryptionConfiguration.
type Provider struct{ Name, Socket string }

// EncryptionConfig writes an EncryptionConfiguration for Secrets, events and the
// custom resource widgets.example.com: the providers in order, then identity.
func EncryptionConfig(path string, providers ...Provider) error {
	var b strings.Builder
	b.WriteString("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets, events, widgets.example.com]\n  providers:\n")
	for _, p := range providers {
		fmt.Fprintf(&b, "  - kms: {apiVersion: v2, name: %s, endpoint: \"unix://%s\", timeout: 3s}\n", p.Name, p.Socket)
	}
	b.WriteString("  - identity: {}\n")
	return os.WriteFile(path, []byte(b.String()), 0o600)
}

// StartAPIServer starts a kube-apiserver named so on an etcd and waits until it
// is ready. Its files are below dir. Where the user is root its hostname is its name,
// so that each has an identity of its own.
func StartAPIServer(ctx context.Context, b Bin, dir, name string, e *Etcd, encryption string, extra ...string) (*APIServer, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	certs := filepath.Join(dir, name+"-pki")
	if err := serviceAccountKeys(dir); err != nil {
		return nil, err
	}
	tokens := filepath.Join(dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte(token+",admin,admin-uid,\"system:masters\"\n"), 0o600); err != nil {
		return nil, err
	}
	a := &APIServer{CertDir: certs, process: process{name: name, path: b.APIServer, log: logPath(dir, name), env: plainEnv(), args: []string{
		"--etcd-servers=" + e.Clients(), "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[0]), "--cert-dir=" + certs,
		"--service-cluster-ip-range=10.0.0.0/24", "--endpoint-reconciler-type=none",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + filepath.Join(dir, "sa.pub"), "--service-account-signing-key-file=" + filepath.Join(dir, "sa.key"),
		"--authorization-mode=RBAC", "--token-auth-file=" + tokens, "--encryption-provider-config=" + encryption,
		"--shutdown-delay-duration=0s",
	}}}
	a.args = append(a.args, extra...)
	a.Client.URL = fmt.Sprintf("https://127.0.0.1:%d", ports[0])
	if os.Geteuid() == 0 {
		a.apart("--uts", "echo "+name+" >/proc/sys/kernel/hostname")
	}
	return a, a.Restart(ctx)
}

// Restart starts it again and waits until it is ready.
func (a *APIServer) Restart(ctx context.Context) error {
	if err := a.start(); err != nil {
		return err
	}
	return a.WaitReady(ctx)
}

// RestartUnready starts it again and waits only until it answers at all.
func (a *APIServer) RestartUnready(ctx context.Context) error {
	if err := a.start(); err != nil {
		return err
	}
	return a.wait(ctx, "/livez")
}

// WaitReady waits for /readyz.
func (a *APIServer) WaitReady(ctx context.Context) error { return a.wait(ctx, "/readyz") }

func (a *APIServer) wait(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	ctx, ended := context.WithCancel(ctx)
	defer ended()
	err := Poll(ctx, 250*time.Millisecond, func(ctx context.Context) error {
		if !a.Alive() {
			ended()
			return errors.New("kube-apiserver ended")
		}
		if err := a.trust(filepath.Join(a.CertDir, "apiserver.crt")); err != nil {
			return err
		}
		body, err := a.Text(ctx, path)
		if err == nil && body != "ok" {
			err = errors.New(body)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", path, err, a.Tail())
	}
	return nil
}

// serviceAccountKeys are shared by all API servers of a directory.
func serviceAccountKeys(dir string) error {
	private, public := filepath.Join(dir, "sa.key"), filepath.Join(dir, "sa.pub")
	if _, err := os.Stat(private); err == nil {
		return nil
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	raw, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}), 0o600),
		os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), 0o600))
}

// Kubeconfig writes one for the admin that trusts all these API servers; its
// server is the first.
func Kubeconfig(path string, servers ...*APIServer) error {
	var ca []byte
	for _, a := range servers {
		crt, err := os.ReadFile(filepath.Join(a.CertDir, "apiserver.crt"))
		if err != nil {
			return err
		}
		ca = append(ca, crt...)
	}
	if err := os.WriteFile(path+".ca", ca, 0o600); err != nil {
		return err
	}
	return os.WriteFile(path, fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
"users":[{"name":"u","user":{"token":%q}}],"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority":%q}}]}`, token, servers[0].URL, path+".ca"), 0o600)
}
