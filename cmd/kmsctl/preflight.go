package main

import (
	"context"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/cluster"
	"kms-plugin.io/internal/status"
)

type preflightFlags struct {
	etcd           etcdFlags
	o              cluster.Options
	run            preflight.Options
	noEtcd         bool
	prefix, output string
}

func preflightCommand() *cobra.Command {
	f := preflightFlags{run: preflight.Options{Program: "kmsctl preflight"}}
	c := &cobra.Command{
		Use:   "preflight",
		Short: "Look at everything around the plugin, and name what is wrong",
		Long: `Look at everything around the plugin on a control-plane node, before the API server
is harmed by it: both configurations, the API server's static pod, the socket, the
plugins of the other nodes, and what etcd holds. Each check has a result, a reason
and a remedy (docs/preflight.md). It needs no cloud identity, and changes nothing;
kms-plugin doctor looks at the KMS, on the node. Exit code 0: no problem; 3:
problems, or with --strict warnings.`,
		Example: `  kmsctl preflight --encryption-config /etc/kubernetes/enc.yaml
  kmsctl preflight --plugins 10.0.0.1:8082,10.0.0.2:8082 --strict`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.preflight(c) },
	}
	f.etcd.add(c)
	c.Flags().StringVar(&f.o.PluginConfig, "plugin-config", "/etc/kms-plugin/config.yaml", "configuration of kms-plugin")
	c.Flags().StringVar(&f.o.Encryption, "encryption-config", "", "EncryptionConfiguration (default: the one of the static pod)")
	c.Flags().StringVar(&f.o.Manifest, "manifest", "/etc/kubernetes/manifests/kube-apiserver.yaml", "static pod of kube-apiserver")
	c.Flags().StringSliceVar(&f.o.Plugins, "plugins", nil, "listenAddress of each plugin, as host:port")
	c.Flags().BoolVar(&f.noEtcd, "no-etcd", false, "do not read etcd")
	c.Flags().StringVar(&f.prefix, "prefix", "/registry", "prefix of kube-apiserver in etcd (its --etcd-prefix)")
	c.Flags().BoolVar(&f.run.Strict, "strict", false, "warnings fail too")
	c.Flags().StringSliceVar(&f.run.Skip, "skip", nil, "names of checks to leave out")
	c.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	return c
}

func (f *preflightFlags) preflight(c *cobra.Command) error {
	if err := preflight.CheckFlags(f.output, f.run.Skip, cluster.Names()); err != nil {
		return cli.Usage(err)
	}
	bar := newProgress(c.ErrOrStderr(), "reading etcd")
	defer bar.end()
	f.o.Scrape = status.Scrape
	if !f.noEtcd {
		f.o.Coverage = func(ctx context.Context, e *encryptionconfig.Config, n *coverage.Names) (*coverage.Report, error) {
			return f.scan(ctx, bar, coverage.Options{Prefix: strings.TrimSuffix(f.prefix, "/"), Encryption: e, Names: n, Progress: bar.set})
		}
	}
	r := preflight.Run(c.Context(), cluster.Checks(f.o), f.run)
	bar.end()
	err := r.Write(c.OutOrStdout(), f.output)
	if err == nil && !r.Passed {
		return cli.ErrFound
	}
	return err
}

func (f *preflightFlags) scan(ctx context.Context, bar *progress, o coverage.Options) (*coverage.Report, error) {
	if f.etcd.Key != "" {
		if _, err := os.Stat(f.etcd.Key); err != nil {
			return nil, err // not a node of etcd: fs.ErrNotExist is no fault
		}
	}
	source, done, err := openSource(ctx, "", live.Config{Endpoints: f.etcd.Endpoints, CA: f.etcd.CA, Cert: f.etcd.Cert, Key: f.etcd.Key}, bar)
	if err != nil {
		return nil, err
	}
	defer done()
	defer bar.end()
	return coverage.Scan(ctx, source, o)
}
