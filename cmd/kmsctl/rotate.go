package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/rotation"
)

type rotateFlags struct {
	kube           kubeFlags
	etcd           etcdFlags
	encryption     []string
	plugin, output string
	backups        backupFlags
	o              rotation.Options
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

func allowUnknown(c *cobra.Command, to *bool) {
	c.Flags().BoolVar(to, fleet.AllowUnknown, false, "go on where nobody can tell whether every API server was asked: there is none beside them")
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
	c.Flags().StringSliceVar(&f.encryption, "encryption-config", nil, "EncryptionConfiguration of the API servers; the files of all if their sockets differ")
	c.Flags().StringVar(&f.plugin, "plugin-config", "", "configuration of kms-plugin: the proof must be under one of its keys")
	c.Flags().StringVar(&f.o.Provider, "provider", "", "name of the KMS provider (default: the one that writes)")
	c.Flags().StringVar(&f.o.Target, "to", "", "key_id, its sha256:…, or name of the plugin's configuration if that can mean only one, to wait for (default: the one that all agree on)")
	c.Flags().StringSliceVar(&f.o.Plugins, "plugins", nil, "listenAddress of each plugin, as host:port: what they report decides what a name means")
	f.backups.add(c)
	allowUnknown(c, &f.o.AllowUnknown)
	c.Flags().StringVarP(&f.o.Namespace, "namespace", "n", "kube-system", "namespace for canaries")
	c.Flags().StringVar(&f.o.Prefix, "prefix", "/registry", "prefix of kube-apiserver in etcd (its --etcd-prefix)")
	c.Flags().DurationVar(&f.o.Wait, "wait", 15*time.Minute, "how long to wait for all API servers")
	c.Flags().StringVar(&f.o.Via, "via", rotation.ViaAuto, "auto: StorageVersionMigration where it works, patches for the rest; migration: the same, or an error; patch: patches alone")
	c.Flags().Float64Var(&f.o.QPS, "qps", 200, "write at most so many objects a second by patches; less while writes are slow")
	c.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	_ = c.MarkFlagRequired("encryption-config")
	return c
}

// read checks the flags and takes in the files they name.
func (f *rotateFlags) read() (err error) {
	switch {
	case f.output != "text" && f.output != "json":
		return cli.Usage(fmt.Errorf("-o %q is neither text nor json", f.output))
	case f.o.QPS <= 0:
		return cli.Usage(fmt.Errorf("--qps %g is not above zero", f.o.QPS))
	case !slices.Contains([]string{rotation.ViaAuto, rotation.ViaMigration, rotation.ViaPatch}, f.o.Via):
		return cli.Usage(fmt.Errorf("--via %q is none of auto, migration, patch", f.o.Via))
	}
	f.o.Prefix = strings.TrimSuffix(f.o.Prefix, "/")
	if f.o.Encryptions, err = loadEncryption(f.encryption); err != nil {
		return err
	}
	f.o.Encryption = f.o.Encryptions[0]
	if f.plugin != "" {
		if f.o.Config, _, err = loadConfig(f.plugin); err != nil {
			return err
		}
		f.o.Names = coverage.NewNames(f.o.Config, time.Now())
	} else if f.o.Target != "" && !rotation.IsExact(f.o.Target) {
		return cli.WithHint(cli.Usage(fmt.Errorf("--to %s is no key_id, so it needs the plugins' configuration", f.o.Target)), "--plugin-config FILE")
	}
	return nil
}

func (f *rotateFlags) run(c *cobra.Command) error {
	if err := f.read(); err != nil {
		return err
	}
	bar := newProgress(c.ErrOrStderr(), "reading snapshots")
	defer bar.end()
	needs, err := f.backups.take(c.Context(), coverage.Options{Prefix: f.o.Prefix, Names: f.o.Names, Progress: bar.set})
	bar.end()
	if err != nil {
		return err
	}
	if f.o.Servers, err = kube.Connect(c.Context(), f.kube.Config); err != nil {
		return err
	}
	f.etcd.Compacted = func(revision int64) {
		bar.say("revision %d was compacted away while it was read; starting again", revision)
	}
	e, err := live.Dial(c.Context(), f.etcd.Config)
	if err != nil {
		return err
	}
	defer e.Close()
	f.o.Source, f.o.Etcd = e, func(ctx context.Context, key string) ([]byte, error) { return e.Get(ctx, key) }
	f.o.Poll = 3 * time.Second
	f.o.Say, f.o.Progress = bar.say, bar.show
	r, err := rotation.Run(c.Context(), f.o)
	bar.end()
	if err != nil {
		return err
	}
	ended := newRotated(r, f.o.Config, needs)
	if f.output == "json" {
		return printJSON(c.OutOrStdout(), ended)
	}
	return ended.print(c.OutOrStdout())
}

// loadEncryption reads the files of all API servers.
func loadEncryption(paths []string) (out []*encryptionconfig.Config, err error) {
	if len(paths) == 0 {
		return nil, cli.Usage(errors.New("--encryption-config names no file"))
	}
	for _, path := range paths {
		c, err := encryptionconfig.Load(path)
		if err != nil {
			return nil, err
		}
		if len(out) > 0 && !c.Same(out[0]) {
			return nil, cli.WithHint(fmt.Errorf("EncryptionConfigurations %q and %q differ in more than the sockets", paths[0], path), "every API server must write and read every resource alike: make them one")
		}
		out = append(out, c)
	}
	return out, nil
}
