package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/rotation"
)

type rotateFlags struct {
	kube                       kubeFlags
	etcd                       etcdFlags
	encryption, plugin, output string
	o                          rotation.Options
}

func rotateCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Bring everything that is stored to the current key",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(rotatePlanCommand(), rotateRunCommand())
	return c
}

func rotateRunCommand() *cobra.Command {
	var f rotateFlags
	c := &cobra.Command{
		Use:   "run --encryption-config FILE",
		Short: "Wait for all API servers, write everything again, and prove it",
		Long: `Wait until a Secret written through each API server is stored under the same
key_id; have every object written again that is not; and prove in etcd, at a
revision after the last write, that nothing is left. It can be stopped and started
again at any point: what is left to do is read from etcd. Exit code 0 only with
the proof.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	f.kube.add(c)
	f.etcd.add(c)
	c.Flags().StringVar(&f.encryption, "encryption-config", "", "EncryptionConfiguration of the API servers")
	c.Flags().StringVar(&f.plugin, "plugin-config", "", "configuration of kms-plugin: the proof must be under one of its keys")
	c.Flags().StringVar(&f.o.Provider, "provider", "", "name of the KMS provider (default: the one that writes)")
	c.Flags().StringVar(&f.o.Target, "to", "", "key_id, its sha256:…, or name of the plugin's configuration, to wait for (default: the one that all agree on)")
	c.Flags().StringVarP(&f.o.Namespace, "namespace", "n", "kube-system", "namespace for canaries")
	c.Flags().StringVar(&f.o.Prefix, "prefix", "/registry", "prefix of kube-apiserver in etcd (its --etcd-prefix)")
	c.Flags().DurationVar(&f.o.Wait, "wait", 15*time.Minute, "how long to wait for all API servers")
	c.Flags().StringVar(&f.o.Via, "via", rotation.ViaAuto, "auto: StorageVersionMigration where it works, patches for the rest; migration: the same, or an error; patch: patches alone")
	c.Flags().Float64Var(&f.o.QPS, "qps", 200, "write at most so many objects a second by patches; less while writes are slow")
	c.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	_ = c.MarkFlagRequired("encryption-config")
	return c
}

func (f *rotateFlags) run(c *cobra.Command) error {
	if f.output != "text" && f.output != "json" {
		return cli.Usage(fmt.Errorf("-o %q is neither text nor json", f.output))
	}
	if f.o.QPS <= 0 {
		return cli.Usage(fmt.Errorf("--qps %g is not above zero", f.o.QPS))
	}
	if !slices.Contains([]string{rotation.ViaAuto, rotation.ViaMigration, rotation.ViaPatch}, f.o.Via) {
		return cli.Usage(fmt.Errorf("--via %q is none of auto, migration, patch", f.o.Via))
	}
	var err error
	if f.o.Encryption, err = encryptionconfig.Load(f.encryption); err != nil {
		return err
	}
	if f.plugin != "" {
		if f.o.Names, err = loadNames(f.plugin); err != nil {
			return err
		}
	}
	if f.o.Servers, err = kube.Connect(c.Context(), f.kube.Config); err != nil {
		return err
	}
	bar := newProgress(c.ErrOrStderr(), "reading etcd")
	defer bar.end()
	f.etcd.Compacted = func(revision int64) {
		bar.say("revision %d was compacted away while it was read; starting again", revision)
	}
	e, err := live.Dial(c.Context(), f.etcd.Config)
	if err != nil {
		return err
	}
	defer e.Close()
	f.o.Source, f.o.Etcd = e, func(ctx context.Context, key string) ([]byte, error) { return e.Get(ctx, key) }
	f.o.Prefix, f.o.Poll = strings.TrimSuffix(f.o.Prefix, "/"), 3*time.Second
	f.o.Say, f.o.Progress = bar.say, bar.set
	r, err := rotation.Run(c.Context(), f.o)
	bar.end()
	if err != nil {
		return err
	}
	if f.output == "json" {
		return printJSON(c.OutOrStdout(), r)
	}
	return printRotated(c, r)
}

// printRotated ends with what may go, and what must be asked before.
func printRotated(c *cobra.Command, r *rotation.Result) error {
	w := c.OutOrStdout()
	fmt.Fprintf(w, "everything is under key_id %s, at revision %d\n", r.KeyID, r.Report.Source.Revision)
	for _, k := range r.Report.Keys {
		if !k.Current {
			fmt.Fprintf(w, "still stored under another key, and not touched: %d objects under %s %q\n", k.Objects, k.Kind, k.Provider)
		}
	}
	_, err := fmt.Fprintln(w, "before an old key goes: take a new snapshot, ask kmsctl inventory for the backups that need it, and let etcd compact")
	return err
}
