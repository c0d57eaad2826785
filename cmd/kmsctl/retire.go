package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/canary"
	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/durable"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/retirement"
	"kms-plugin.io/internal/status"
	"kms-plugin.io/pkg/keys"
)

type retireFlags struct {
	kube                              kubeFlags
	etcd                              etcdFlags
	plugin, namespace, prefix, output string
	evidence                          string
	snapshots                         []string
	o                                 retirement.Options
}

func retireCommand() *cobra.Command {
	var f retireFlags
	c := &cobra.Command{
		Use:   "retire KEY --plugin-config FILE",
		Short: "Tell whether a key may be disabled, or what would be lost",
		Long: `Look for anything that depends on a key of the plugin's configuration: values in
etcd, what watches can still replay, snapshots, API servers that write under it,
plugins that open under it. It disables nothing. Exit code 0: the key may go, with
the evidence and the command; 3: it may not, with what stands against it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args[0]) },
	}
	f.kube.add(c)
	f.etcd.add(c)
	c.Flags().StringVar(&f.plugin, "plugin-config", "", "configuration of kms-plugin, as it is on every node")
	c.Flags().StringSliceVar(&f.o.Plugins, "plugins", nil, "listenAddress of each plugin, as host:port")
	c.Flags().StringSliceVar(&f.snapshots, "snapshots", nil, "snapshot files or directories: all that are kept")
	c.Flags().BoolVar(&f.o.NoSnapshots, "no-snapshots", false, "there are no snapshots")
	allowUnknown(c, &f.o.AllowUnknown)
	allowUnverified(c, &f.o.AllowUnverified)
	c.Flags().StringVarP(&f.namespace, "namespace", "n", "kube-system", "namespace for canaries")
	c.Flags().StringVar(&f.prefix, "prefix", "/registry", "prefix of kube-apiserver in etcd (its --etcd-prefix)")
	c.Flags().StringVar(&f.evidence, "evidence", "", "also write the evidence to this file, as JSON")
	c.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	_ = c.MarkFlagRequired("plugin-config")
	c.MarkFlagsMutuallyExclusive("snapshots", "no-snapshots")
	return c
}

func (f *retireFlags) run(c *cobra.Command, key string) error {
	if f.output != "text" && f.output != "json" {
		return cli.Usage(fmt.Errorf("-o %q is neither text nor json", f.output))
	}
	f.prefix = strings.TrimSuffix(f.prefix, "/")
	if err := f.configure(key); err != nil {
		return err
	}
	servers, err := kube.Connect(c.Context(), f.kube.Config)
	if err != nil {
		return err
	}
	bar := newProgress(c.ErrOrStderr(), "reading")
	defer bar.end()
	e, err := live.Dial(c.Context(), f.etcd.Config)
	if err != nil {
		return err
	}
	defer e.Close()
	f.o.Live, f.o.History, f.o.Coverage.Progress = e, e.History(), bar.set
	if f.o.Snapshots, err = openSnapshots(c.Context(), f.snapshots); err != nil {
		return err
	}
	f.o.APIServers, f.o.Scrape = len(servers), status.Scrape
	f.o.Canary = func(ctx context.Context) *canary.Report {
		return canary.Run(ctx, canary.Options{Namespace: f.namespace, Writers: servers, Readers: servers, Etcd: e.Get, Prefix: f.prefix, Timeout: 15 * time.Second})
	}
	f.o.Unasked = func(ctx context.Context) fleet.Unasked {
		_, u := fleet.Count(ctx, servers)
		return u
	}
	evidence, err := retirement.Gather(c.Context(), f.o)
	bar.end()
	if err != nil {
		return err
	}
	return f.deliver(c, evidence)
}

// configure finds the key in the file, whose bytes every plugin must run.
func (f *retireFlags) configure(key string) error {
	parsed, _, err := loadConfig(f.plugin)
	if err != nil {
		return err
	}
	f.o.Key = key
	f.o.Coverage = coverage.Options{Prefix: f.prefix, Names: coverage.NewNames(parsed, time.Now())}
	for _, k := range parsed.Keys {
		for _, o := range parsed.Keys {
			if k.Name == key && o.Name != key && o.Role != keys.RoleRetired && o.SameKEK(k) {
				return cli.WithHint(fmt.Errorf("key %q is the same KEK as %q: disabling it would end both", key, o.Name), fmt.Sprintf("take key %q out of the configuration when it has opened nothing for 24 h, and disable nothing", key))
			}
		}
		if k.Name == key {
			f.o.Role, f.o.Target = string(k.Role), k.Target()
			if k.AWSKMS != nil {
				f.o.Replicas = k.AWSKMS.Replicas
			}
			return nil
		}
	}
	return cli.WithHint(cli.Usage(fmt.Errorf("there is no key %q in %s, which has %s", key, f.plugin, strings.Join(f.o.Coverage.Names.Known(), ", "))),
		"a key leaves the file last: put it back with role: retired")
}

func (f *retireFlags) deliver(c *cobra.Command, e *retirement.Evidence) error {
	if f.evidence != "" {
		data, err := json.MarshalIndent(e, "", "  ")
		if err == nil {
			err = durable.WriteFile(f.evidence, append(data, '\n'), 0o644)
		}
		if err != nil {
			return cli.WithHint(fmt.Errorf("evidence: %w", err), "--evidence FILE in a directory that can be written")
		}
	}
	err := error(nil)
	if f.output == "json" {
		err = printJSON(c.OutOrStdout(), e)
	} else {
		err = e.Print(c.OutOrStdout())
	}
	if err == nil && !e.MayGo {
		return cli.ErrFound
	}
	return err
}
