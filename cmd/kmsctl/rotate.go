package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/rotation"
	"kms-plugin.io/pkg/keys"
)

type rotateFlags struct {
	kube           kubeFlags
	etcd           etcdFlags
	encryption     []string
	plugin, output string
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
	return printRotated(c.OutOrStdout(), r, f.o.Config)
}

// others are the keys of the ring beside the one that everything is under, and its
// co-recipients.
func others(ring *config.Config, name string) (out []config.Key) {
	if ring == nil {
		return nil
	}
	stays := []string{name}
	for _, k := range ring.Keys {
		if k.Name == name {
			stays = append(stays, k.AlsoWrapWith...)
		}
	}
	for _, k := range ring.Keys {
		if !slices.Contains(stays, k.Name) {
			out = append(out, k)
		}
	}
	return out
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

// printRotated ends with what may go, and what must be asked before.
func printRotated(w io.Writer, r *rotation.Result, ring *config.Config) error {
	fmt.Fprintf(w, "everything is under key_id %s, at revision %d\n", r.KeyID, r.Report.Source.Revision)
	for _, k := range r.Report.Keys {
		if !k.Current {
			fmt.Fprintf(w, "still stored under another key, and not touched: %d objects under %s %q\n", k.Objects, k.Kind, k.Provider)
		}
	}
	label, _, _ := keys.SplitKeyID(r.KeyID)
	for _, k := range others(ring, label) {
		under := int64(0)
		for _, s := range r.Report.Keys {
			if name, _, err := keys.SplitKeyID(s.KeyID); err == nil && name == k.Name || s.Name == k.Name {
				under += s.Objects
			}
		}
		switch {
		case under > 0:
			fmt.Fprintf(w, "key %q: %d objects are under it; it stays\n", k.Name, under)
		case k.Role == keys.RoleRetired:
			fmt.Fprintf(w, "key %q: no object is under it, and it is retired; whether it may go: kmsctl retire %s --snapshots DIR\n", k.Name, k.Name)
		default:
			fmt.Fprintf(w, "key %q: no object is under it; it may be retired once it shall not write again (role: retired), and goes when the last backup that needs it has: kmsctl inventory DIR --keep 30d\n", k.Name)
		}
	}
	_, err := fmt.Fprintln(w, "before an old key goes: take a new snapshot, ask kmsctl inventory for the backups that need it, and let etcd compact")
	return err
}
