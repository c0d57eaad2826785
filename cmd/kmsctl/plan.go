package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/drill"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/cluster"
	"kms-plugin.io/internal/rotation"
)

type planFlags struct {
	kube                          kubeFlags
	etcd                          etcdFlags
	plugin, output, keep          string
	encryption, snapshots, drills []string
	o                             rotation.Scope
}

func rotatePlanCommand() *cobra.Command {
	var f planFlags
	c := &cobra.Command{
		Use:   "plan --encryption-config FILE --plugin-config FILE",
		Short: "Print the steps that are left, and change nothing",
		Long: `Look at every API server, every plugin, etcd and the snapshots given, and print
the steps of a rotation that are left: what to do, how to check it, how to undo
it, and where the point of no return is. It changes nothing. Exit code 0: all is
under the key; 3: something is left to do before that.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	f.kube.add(c)
	f.etcd.add(c)
	c.Flags().StringSliceVar(&f.encryption, "encryption-config", nil, "EncryptionConfiguration of the API servers; the files of all if their sockets differ")
	c.Flags().StringVar(&f.plugin, "plugin-config", "", "configuration of kms-plugin, as it shall be on every node")
	c.Flags().StringSliceVar(&f.o.Plugins, "plugins", nil, "listenAddress of each plugin, as host:port")
	c.Flags().StringSliceVar(&f.snapshots, "snapshots", nil, "snapshot files or directories: all that are kept")
	c.Flags().StringSliceVar(&f.drills, "drills", nil, "reports of kmsctl drill -o json on them")
	c.Flags().StringVar(&f.keep, "keep", "", "how long snapshots are kept, such as 30d")
	allowUnknown(c, new(bool)) // repeated in the commands of the plan
	c.Flags().StringVar(&f.o.Provider, "provider", "", "name of the KMS provider (default: the one that writes)")
	c.Flags().StringVar(&f.o.Target, "to", "", "key that everything shall be under: its name, or a key_id (default: the one that writes last by the configuration)")
	c.Flags().StringVar(&f.o.Prefix, "prefix", "/registry", "prefix of kube-apiserver in etcd (its --etcd-prefix)")
	c.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	_ = c.MarkFlagRequired("encryption-config")
	_ = c.MarkFlagRequired("plugin-config")
	return c
}

func (f *planFlags) run(c *cobra.Command) error {
	if f.output != "text" && f.output != "json" {
		return cli.Usage(fmt.Errorf("-o %q is neither text nor json", f.output))
	}
	if err := f.read(c); err != nil {
		return err
	}
	bar := newProgress(c.ErrOrStderr(), "reading")
	defer bar.end()
	f.o.Progress = bar.set
	f.etcd.Compacted = func(revision int64) {
		bar.say("revision %d was compacted away while it was read; starting again", revision)
	}
	e, err := live.Dial(c.Context(), f.etcd.Config)
	if err != nil {
		return err
	}
	defer e.Close()
	f.o.Source = e
	facts, err := rotation.Observe(c.Context(), f.o)
	bar.end()
	if err != nil {
		return err
	}
	p := rotation.MakePlan(facts, givenFlags(c))
	p.Precede(preflight.Run(c.Context(), cluster.OfFiles(f.plugin, f.encryption[0]), preflight.Options{}))
	if f.output == "json" {
		err = printJSON(c.OutOrStdout(), p)
	} else {
		err = p.Print(c.OutOrStdout())
	}
	if err == nil && !p.Complete {
		return cli.ErrFound
	}
	return err
}

// read takes in the files.
func (f *planFlags) read(c *cobra.Command) (err error) {
	f.o.Prefix = strings.TrimSuffix(f.o.Prefix, "/")
	if f.o.Keep, err = days(f.keep); err != nil {
		return cli.Usage(err)
	}
	if f.o.Encryptions, err = loadEncryption(f.encryption); err != nil {
		return err
	}
	f.o.Encryption = f.o.Encryptions[0]
	if err = f.readDrills(); err != nil {
		return err
	}
	if f.o.Config, f.o.ConfigHash, err = loadConfig(f.plugin); err != nil {
		return err
	}
	if f.o.Servers, err = kube.Connect(c.Context(), f.kube.Config); err != nil {
		return err
	}
	f.o.Snapshots, err = openSnapshots(c.Context(), f.snapshots)
	return err
}

func (f *planFlags) readDrills() error {
	for _, path := range f.drills {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var r drill.Report
		if err := json.Unmarshal(data, &r); err != nil || r.APIVersion != drill.APIVersion {
			return cli.WithHint(fmt.Errorf("%s is no report of a drill (%s)", path, drill.APIVersion), "kmsctl drill --snapshot FILE -o json >"+path)
		}
		f.o.Drills = append(f.o.Drills, &r)
	}
	return nil
}

// loadConfig reads the plugin's configuration, and names its bytes.
func loadConfig(path string) (*config.Config, string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	c, problems := config.Parse(data)
	if p := problems.Fatal(); len(p) > 0 {
		return nil, "", cli.WithHint(fmt.Errorf("plugin configuration %q: %w", path, p), "kms-plugin config check "+path)
	}
	return c, config.Hash(data), nil
}

// givenFlags repeats the flags that the commands of a plan have too.
func givenFlags(c *cobra.Command) rotation.Flags {
	text := func(names ...string) string {
		var b strings.Builder
		c.Flags().Visit(func(f *pflag.Flag) {
			if !slices.Contains(names, f.Name) {
				return
			}
			value := f.Value.String()
			if v, ok := f.Value.(pflag.SliceValue); ok {
				value = strings.Join(v.GetSlice(), ",")
			}
			fmt.Fprintf(&b, " --%s=%s", f.Name, quoted(value))
		})
		return b.String()
	}
	first := ""
	if files, err := c.Flags().GetStringSlice("encryption-config"); err == nil && len(files) > 0 {
		first = " --encryption-config=" + quoted(files[0])
	}
	return rotation.Flags{Kube: text("kubeconfig", "context", "servers"), Etcd: text("endpoints", "cacert", "cert", "key", "prefix"),
		Encryption: text("encryption-config"), FirstEncryption: first, Plugin: text("plugin-config"), Plugins: text("plugins"), To: text("to"), Provider: text("provider"), AllowUnknown: text(fleet.AllowUnknown)}
}
