// Command demo shows the main job with real parts: etcd, kube-apiserver and
// kms-plugin with its embedded key, in a temporary directory, gone at the end.
package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/etcdvalue"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo: error:", err)
		os.Exit(1)
	}
}

// demo is what the steps share.
type demo struct {
	out    io.Writer
	dir    string
	bin    controlplane.Bin
	etcd   *controlplane.Etcd
	plugin *controlplane.Plugin
	api    *controlplane.APIServer
}

func run(ctx context.Context, out io.Writer) error {
	dir, err := os.MkdirTemp("", "kms-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := &demo{out: out, dir: dir}
	defer d.stop()
	for _, step := range []func(context.Context) error{d.build, d.start, d.write, d.restart, d.read} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.explain()
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) build(ctx context.Context) (err error) {
	d.say("== Build")
	if d.bin, err = controlplane.Build(ctx, d.out); err != nil {
		return err
	}
	d.bin.Plugin, err = controlplane.BuildPlugin(ctx, d.out, d.dir)
	return err
}

func (d *demo) start(ctx context.Context) (err error) {
	d.say("\n== Start etcd, kms-plugin serve --dev, kube-apiserver")
	if d.etcd, err = controlplane.StartEtcd(ctx, d.bin, d.dir); err != nil {
		return err
	}
	keys := filepath.Join(d.dir, "dev")
	d.plugin = controlplane.NewPlugin(d.bin, d.dir, "plugin", filepath.Join(keys, "kms.sock"), nil, "serve", "--dev", "--dir", keys)
	if err := d.plugin.Restart(ctx); err != nil {
		return err
	}
	enc := filepath.Join(d.dir, "encryption.yaml")
	if err := controlplane.EncryptionConfig(enc, controlplane.Provider{Name: "demo", Socket: d.plugin.Socket}); err != nil {
		return err
	}
	begun := time.Now()
	if d.api, err = controlplane.StartAPIServer(ctx, d.bin, d.dir, "kube-apiserver", d.etcd, enc); err != nil {
		return err
	}
	d.say("kube-apiserver %s is ready after %.1f s", "v1.37.2", time.Since(begun).Seconds())
	return nil
}

func (d *demo) write(ctx context.Context) error {
	d.say("\n== Write a Secret, and look at it from both sides")
	if _, err := d.kubectl(ctx, "create", "secret", "generic", "demo", "--from-literal=password=correct-horse-battery-staple"); err != nil {
		return err
	}
	shown, err := d.kubectl(ctx, "get", "secret", "demo", "-o", "jsonpath={.data.password}")
	if err != nil {
		return err
	}
	d.say("$ kubectl get secret demo -o jsonpath={.data.password}      what an API client sees (base64)\n%s", shown)
	raw, err := d.etcd.Get(ctx, "/registry/secrets/default/demo")
	if err != nil {
		return err
	}
	d.say("$ etcdctl get /registry/secrets/default/demo | head -c 160  what etcd holds\n%s", strings.TrimRight(hex.Dump(raw[:min(len(raw), 160)]), "\n"))
	if strings.Contains(string(raw), "correct-horse") {
		return fmt.Errorf("the Secret is in etcd in plain text")
	}
	o, err := etcdvalue.Parse(raw)
	if err != nil {
		return err
	}
	d.say("%d bytes in etcd, provider %q, key_id %q", len(raw), o.Provider, o.KeyID)
	return nil
}

func (d *demo) restart(ctx context.Context) error {
	d.say("\n== Restart kms-plugin and kube-apiserver")
	if err := d.api.Stop(); err != nil {
		return err
	}
	if err := d.plugin.Stop(); err != nil {
		return err
	}
	if err := d.plugin.Restart(ctx); err != nil {
		return err
	}
	return d.api.Restart(ctx)
}

func (d *demo) read(ctx context.Context) error {
	shown, err := d.kubectl(ctx, "get", "secret", "demo", "-o", "jsonpath={.data.password}")
	if err != nil {
		return err
	}
	d.say("$ kubectl get secret demo -o jsonpath={.data.password}      read again, by processes that never saw it\n%s", shown)
	return nil
}

func (d *demo) explain() {
	d.say(`
== What just happened
 1. kms-plugin made a key in a file (a cloud KMS in production) and a local KEK,
    wrapped the local KEK by that key, and began to listen on a unix socket.
 2. kube-apiserver asked it for its Status and sent it one 32-byte DEK seed.
 3. The plugin sealed the seed under the local KEK; kube-apiserver keeps seed and
    sealed seed, and derives from the seed one data key for each write.
 4. etcd holds only ciphertext, beside it the sealed seed, the wrapped local KEK
    and the key_id, which names the key in the KMS and its material.
 5. After both restarted nobody knew the seed: kube-apiserver sent the sealed one
    to the plugin, which had the key unwrap the local KEK, and opened it.`)
}

func (d *demo) kubectl(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"--server", d.api.URL, "--certificate-authority", filepath.Join(d.api.CertDir, "apiserver.crt"), "--token", "admintoken"}, args...)
	cmd := exec.CommandContext(ctx, d.bin.Kubectl, args...)
	cmd.Env = []string{"HOME=" + d.dir}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("kubectl: %w: %s", err, out)
	}
	return string(out), nil
}

// stop ends what runs; what cannot be stopped is killed.
func (d *demo) stop() {
	if d.api != nil {
		_ = d.api.Kill()
	}
	if d.plugin != nil {
		_ = d.plugin.Stop()
	}
	if d.etcd != nil {
		_ = d.etcd.Kill()
	}
}
