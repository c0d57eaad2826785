package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/fakekms"
)

const rotateSecrets = 10_000

// cluster is one etcd, one kube-apiserver, one plugin and a cloud.
type cluster struct {
	dir    string
	cloud  *fakekms.Server
	arn    string
	etcd   *controlplane.Etcd
	plugin *controlplane.Plugin
	api    *controlplane.APIServer
}

// rotate has 10,000 Secrets written again by patches through a real kube-apiserver
// (there is no controller manager for StorageVersionMigration), and watches what a bystander feels of it: at the rate that kmsctl keeps by default,
// and as fast as it goes.
func (b *bench) rotate(ctx context.Context) error {
	if err := b.buildKmsctl(ctx); err != nil {
		return err
	}
	bin, err := controlplane.Build(ctx, os.Stderr)
	if err != nil {
		return err
	}
	bin.Plugin = b.binary
	c := &cluster{dir: filepath.Join(b.dir, "rotate")}
	defer c.stop()
	if err := c.start(ctx, bin); err != nil {
		return err
	}
	if err := c.fill(ctx, rotateSecrets); err != nil {
		return err
	}
	for _, q := range []struct{ name, qps string }{{"at the default --qps 200", "200"}, {"at --qps 100000", "100000"}} {
		if err := b.rotateOnce(ctx, c, fmt.Sprintf("rotate run, %s Secrets, %s", grouped(rotateSecrets), q.name), q.qps); err != nil {
			return fmt.Errorf("rotate: %w", err)
		}
	}
	return nil
}

func (c *cluster) start(ctx context.Context, bin controlplane.Bin) (err error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	if c.cloud, err = fakekms.Start(fakekms.Config{}); err != nil {
		return err
	}
	c.arn = c.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{})
	if c.etcd, err = controlplane.StartEtcd(ctx, bin, c.dir); err != nil {
		return err
	}
	config := filepath.Join(c.dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: %s
socket: {path: %[2]s/kms.sock}
stateDir: %[2]s
listenAddress: 127.0.0.1:0
audit: {path: %[2]s/audit.log}
probe: {interval: 500ms}
rotation: {observations: 2, settleTime: 500ms}
keys:
- {name: prod, role: write, awskms: {keyARN: "%s", endpoint: "%s"}}
`, clusterID, c.dir, c.arn, c.cloud.URL()), 0o600); err != nil {
		return err
	}
	c.plugin = controlplane.NewPlugin(bin, c.dir, "plugin", filepath.Join(c.dir, "kms.sock"), []string{
		"AWS_CONTAINER_CREDENTIALS_FULL_URI=" + c.cloud.CredentialsURL("default"), "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
	}, "serve", "--config", config)
	if err := c.plugin.Restart(ctx); err != nil {
		return err
	}
	encryption := c.file("encryption.yaml")
	if err := controlplane.EncryptionConfig(encryption, controlplane.Provider{Name: "kms1", Socket: c.plugin.Socket}); err != nil {
		return err
	}
	if c.api, err = controlplane.StartAPIServer(ctx, bin, c.dir, "api", c.etcd, encryption); err != nil {
		return err
	}
	return controlplane.Kubeconfig(c.file("kubeconfig"), c.api)
}

func (c *cluster) file(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) stop() {
	if c.api != nil {
		_ = c.api.Kill()
	}
	if c.plugin != nil {
		_ = c.plugin.Kill()
	}
	if c.etcd != nil {
		_ = c.etcd.Kill()
	}
	if c.cloud != nil {
		c.cloud.Close()
	}
}

func (c *cluster) fill(ctx context.Context, n int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error {
			_, err := c.api.CreateSecret(ctx, fmt.Sprintf("fill-%05d", i), strings.Repeat("v", 1024))
			return err
		})
	}
	return g.Wait()
}

// turn rotates the KEK and waits until the plugin reports it.
func (c *cluster) turn(ctx context.Context) (keyID string, err error) {
	old, err := c.plugin.Status(ctx)
	if err != nil {
		return "", err
	}
	c.cloud.Rotate(c.arn)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = controlplane.Poll(ctx, 100*time.Millisecond, func(ctx context.Context) error {
		s, err := c.plugin.Status(ctx)
		if err == nil && s.KeyId == old.KeyId {
			err = errors.New("the plugin does not see the rotation")
		}
		if err == nil {
			keyID = s.KeyId
		}
		return err
	})
	return keyID, err
}

func (b *bench) rotateOnce(ctx context.Context, c *cluster, name, qps string) error {
	keyID, err := c.turn(ctx)
	if err != nil {
		return err
	}
	quiet, err := c.watch(ctx, func(ctx context.Context) error { poll(15 * time.Second); return ctx.Err() })
	if err != nil {
		return err
	}
	var took time.Duration
	busy, err := c.watch(ctx, func(ctx context.Context) error {
		var err error
		took, err = c.rotateRun(ctx, b.kmsctl, keyID, qps)
		return err
	})
	if err != nil {
		return err
	}
	b.add(Row{Figure: name + ": rate", Value: fmt.Sprintf("%.0f objects/s", rotateSecrets/took.Seconds())})
	for i, what := range []string{"reads", "writes"} {
		before, during := percentile(quiet[i], 99), percentile(busy[i], 99)
		b.add(Row{Figure: "the same: p99 of a bystander's " + what, Ratio: during / before,
			Value: fmt.Sprintf("%.1f ms, %.1f before (%d and %d calls)", during, before, len(busy[i]), len(quiet[i]))})
	}
	return nil
}

// rotateRun returns how long the writing took: from the line that tells of
// convergence to the one that tells of the end of it.
func (c *cluster) rotateRun(ctx context.Context, kmsctl, keyID, qps string) (took time.Duration, err error) {
	cmd := exec.CommandContext(ctx, kmsctl, "rotate", "run", "--via", "patch", "-n", "default", "--to", keyID, "--qps", qps,
		"--encryption-config", c.file("encryption.yaml"), "--plugin-config", c.file("config.yaml"),
		"--kubeconfig", c.file("kubeconfig"), "--servers", c.api.URL, "--endpoints", c.etcd.URL, "--cacert=", "--cert=", "--key=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	lines, err := cmd.StderrPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var begun time.Time
	var log []string
	written := 0
	for s := bufio.NewScanner(lines); s.Scan(); {
		log = append(log, s.Text())
		switch {
		case strings.HasPrefix(s.Text(), "converge: all"):
			begun = time.Now()
		case strings.Contains(s.Text(), "objects were written again") && took == 0 && !begun.IsZero():
			took = time.Since(begun)
			_, err = fmt.Sscanf(s.Text(), "re-encrypt: %d", &written)
		}
	}
	err = errors.Join(err, cmd.Wait())
	if err == nil && written < rotateSecrets {
		err = fmt.Errorf("only %d objects were written again", written)
	}
	if err != nil {
		err = fmt.Errorf("kmsctl rotate run: %w: %s", err, strings.Join(log, "; "))
	}
	return took, err
}

// watch measures single reads and writes in ms while f runs: a Secret of the
// bystander's own, uncached, one call at a time of each.
func (c *cluster) watch(ctx context.Context, f func(context.Context) error) (times [2][]float64, err error) {
	mine, err := c.api.CreateSecret(ctx, fmt.Sprintf("bystander-%d", time.Now().UnixNano()), "0")
	if err != nil {
		return times, err
	}
	stop := make(chan struct{})
	var failed [2]error
	var wg sync.WaitGroup
	calls := [2]func(i int) error{
		func(i int) error {
			_, err := c.api.GetSecret(ctx, fmt.Sprintf("fill-%05d", i*7919%rotateSecrets))
			return err
		},
		func(i int) (err error) {
			mine.Data["v"] = fmt.Append(nil, i)
			mine.Metadata.ResourceVersion = "" // whatever it is now
			mine, err = c.api.UpdateSecret(ctx, mine)
			return err
		},
	}
	for k, call := range calls {
		wg.Go(func() {
			for i := 0; failed[k] == nil; i++ {
				select {
				case <-stop:
					return
				default:
				}
				begun := time.Now()
				failed[k] = call(i)
				times[k] = append(times[k], float64(time.Since(begun).Microseconds())/1000)
			}
		})
	}
	err = f(ctx)
	close(stop)
	wg.Wait()
	return times, errors.Join(err, failed[0], failed[1])
}

func percentile(v []float64, p int) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[min(len(s)*p/100, len(s)-1)]
}
