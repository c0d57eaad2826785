package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/daemon"
	"kms-plugin.io/internal/harden"
	"kms-plugin.io/internal/process"
	"kms-plugin.io/internal/systemd"
	"kms-plugin.io/pkg/keys/localfile"
)

type serveArgs struct {
	config string
	dev    bool
	dir    string
	listen string
	force  bool
}

func serveCommand() *cobra.Command {
	var a serveArgs
	c := &cobra.Command{
		Use:   "serve (--config FILE | --dev [--dir DIR])",
		Short: "Serve the KMS v2 API on a unix socket",
		Long: `Serve the KMS v2 API on a unix socket until SIGTERM. SIGHUP, or a changed
file, reloads the configuration. Under systemd it says when it serves, and takes
a socket that systemd holds (Type=notify-reload, .socket units).

With --dev nothing has to be prepared: an embedded key is made in DIR on first
use and the socket is DIR/kms.sock. It protects nothing from who can read DIR.`,
		Example: `  kms-plugin serve --config /etc/kms-plugin/config.yaml
  kms-plugin serve --dev --dir /tmp/kms-dev`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return serve(c, a) },
	}
	f := c.Flags()
	f.StringVar(&a.config, "config", "", "configuration file")
	f.BoolVar(&a.dev, "dev", false, "serve with an embedded key, for development only")
	f.StringVar(&a.dir, "dir", "", "with --dev: directory of key, state and socket (default: kms-plugin-dev below the user's cache directory)")
	f.StringVar(&a.listen, "listen-address", "127.0.0.1:0", "with --dev: loopback host:port of /livez, /readyz and /metrics")
	f.BoolVar(&a.force, "force", false, "start even if the ring must not follow the one this node remembers; data may become unreadable")
	return c
}

func serve(c *cobra.Command, a serveArgs) error {
	if (a.config != "") == a.dev {
		return cli.Usage(errors.New("give one of --config FILE and --dev"))
	}
	if err := harden.NoDump(); err != nil {
		return err
	}
	process.Tune()
	o := daemon.Options{Source: daemon.Source{Path: a.config}, Force: a.force, Log: c.ErrOrStderr(), Confine: harden.Apply, Broker: startBroker}
	if err := fromSystemd(&o); err != nil {
		return err
	}
	if a.dev {
		dir, err := devDir(a.dir)
		if err != nil {
			return err
		}
		o.Source = daemon.Source{Fixed: devConfig(dir, a.listen)}
		fmt.Fprintf(c.ErrOrStderr(), `
  DEVELOPMENT MODE. The key is a file in %[1]s.
  Who can read that directory can read every Secret. Do not use it for anything
  that matters; see the README for a key in a cloud KMS.
  EncryptionConfiguration: endpoint: unix://%[1]s/kms.sock

`, dir)
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	o.Reload = hup
	return daemon.Run(c.Context(), o)
}

// fromSystemd takes what systemd gives a service.
func fromSystemd(o *daemon.Options) (err error) {
	if o.Notify, err = systemd.FromEnvironment(); err != nil {
		return err
	}
	o.Passed, err = systemd.Socket()
	return err
}

// devDir makes the directory and the key of --dev on first use.
func devDir(dir string) (string, error) {
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", cli.WithHint(fmt.Errorf("find a directory for --dev: %w", err), "give one with --dir")
		}
		dir = filepath.Join(cache, "kms-plugin-dev")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the directory of --dev: %w", err)
	}
	key := filepath.Join(dir, "dev.keyset")
	if _, err := os.Lstat(key); errors.Is(err, os.ErrNotExist) {
		return dir, firstKey(dir, key)
	}
	return dir, nil
}

// firstKey makes the key only where nothing could depend on an earlier one.
func firstKey(dir, key string) error {
	if _, err := os.Lstat(filepath.Join(dir, "state.json")); err == nil {
		return cli.WithHint(fmt.Errorf("the key %q is gone, but this directory was used before: a new key could not open what the old one wrapped", key),
			"restore the file, or begin anew in another directory with --dir")
	}
	return localfile.Create(key)
}

func devConfig(dir, listen string) []byte {
	return fmt.Appendf(nil, `apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: dev
socket: {path: %q}
stateDir: %q
listenAddress: %q
keys:
- name: dev
  role: write
  localfile: {path: %q}
`, filepath.Join(dir, "kms.sock"), dir, listen, filepath.Join(dir, "dev.keyset"))
}
