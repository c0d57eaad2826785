package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/canary"
	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/durable"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/internal/kube"
)

// kubeFlags are how the API servers are reached.
type kubeFlags struct{ kube.Config }

func (f *kubeFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.Kubeconfig, "kubeconfig", "", "kubeconfig of an administrator (default: as kubectl)")
	c.Flags().StringVar(&f.Context, "context", "", "context of the kubeconfig")
	c.Flags().StringSliceVar(&f.Servers, "servers", nil, "each API server, as https://host:port (default: the endpoints of Service default/kubernetes)")
	f.UserAgent, f.Timeout = "kmsctl/"+cli.Version(), 30*time.Second
}

type canaryFlags struct {
	kube             kubeFlags
	etcd             etcdFlags
	through          []string
	checkEtcd        bool
	output, textfile string
	o                canary.Options
}

func canaryCommand() *cobra.Command {
	var f canaryFlags
	c := &cobra.Command{
		Use:   "canary [--through HOST:PORT]",
		Short: "Write a Secret through an API server, and read it through all",
		Long: `Write a small Secret through each API server, or those of --through, and read it
through all of them: uncached, and from their watch caches. Afterwards the plugin
of each has opened what the others sealed, which is what keeps them readable in
an outage of the KMS. With --etcd it also looks how the Secret is stored. It
removes what it wrote. Exit code 0: all is well; 3: something is wrong.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	f.kube.add(c)
	f.etcd.add(c)
	c.Flags().BoolVar(&f.checkEtcd, "etcd", false, "look into etcd too, by --endpoints, --cacert, --cert and --key")
	c.Flags().StringSliceVar(&f.through, "through", nil, "write only through these API servers (host:port), as a timer on each control-plane node does")
	c.Flags().StringVarP(&f.o.Namespace, "namespace", "n", "kube-system", "namespace of the Secret")
	c.Flags().StringVar(&f.o.Prefix, "prefix", "/registry", "prefix of kube-apiserver in etcd (its --etcd-prefix)")
	c.Flags().StringVar(&f.o.Provider, "provider", "", "name of the KMS provider that must have written")
	c.Flags().StringVar(&f.o.KeyID, "key-id", "", "key_id that must have written")
	c.Flags().DurationVar(&f.o.Slow, "slow", 2*time.Second, "name steps that take longer")
	c.Flags().DurationVar(&f.o.Timeout, "timeout", 15*time.Second, "give up a step after this")
	c.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	c.Flags().StringVar(&f.textfile, "textfile", "", "also write metrics to this file, for node_exporter's textfile collector")
	return c
}

func (f *canaryFlags) run(c *cobra.Command) error {
	if f.output != "text" && f.output != "json" {
		return cli.Usage(fmt.Errorf("-o %q is neither text nor json", f.output))
	}
	if (f.o.Provider != "" || f.o.KeyID != "") && !f.checkEtcd {
		return cli.Usage(fmt.Errorf("--provider and --key-id can only be checked with --etcd"))
	}
	servers, err := kube.Connect(c.Context(), f.kube.Config)
	if err != nil {
		return err
	}
	f.o.Readers = servers
	if f.o.Writers, err = pick(servers, f.through); err != nil {
		return err
	}
	f.o.Prefix = strings.TrimSuffix(f.o.Prefix, "/")
	if f.checkEtcd {
		e, err := live.Dial(c.Context(), f.etcd.Config)
		if err != nil {
			return err
		}
		defer e.Close()
		f.o.Etcd = func(ctx context.Context, key string) ([]byte, error) { return e.Get(ctx, key) }
	}
	return f.deliver(c, canary.Run(c.Context(), f.o))
}

func pick(servers []*kube.Server, names []string) ([]*kube.Server, error) {
	if len(names) == 0 {
		return servers, nil
	}
	var out []*kube.Server
	for _, n := range names {
		i := slices.IndexFunc(servers, func(s *kube.Server) bool { return s.Name == strings.TrimPrefix(n, "https://") })
		if i < 0 {
			var known []string
			for _, s := range servers {
				known = append(known, s.Name)
			}
			return nil, cli.Usage(fmt.Errorf("--through %s is none of the API servers %s", n, strings.Join(known, ", ")))
		}
		out = append(out, servers[i])
	}
	return out, nil
}

func (f *canaryFlags) deliver(c *cobra.Command, r *canary.Report) error {
	if f.textfile != "" {
		if err := durable.WriteFile(f.textfile, r.Textfile(), 0o644); err != nil {
			return cli.WithHint(fmt.Errorf("metrics: %w", err), "--textfile FILE.prom in the directory that node_exporter reads")
		}
	}
	if f.output == "json" {
		if err := printJSON(c.OutOrStdout(), r); err != nil {
			return err
		}
	} else if err := r.Print(c.OutOrStdout()); err != nil {
		return err
	}
	if !r.Passed() {
		return cli.ErrFound
	}
	return nil
}
