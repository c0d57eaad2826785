package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/kube"
	"kms-plugin.io/internal/revocation"
	"kms-plugin.io/internal/status"
)

type revokeFlags struct {
	kube             kubeFlags
	plugins, sockets []string
	since, output    string
	o                revocation.Options
}

func revokeCheckCommand() *cobra.Command {
	var f revokeFlags
	c := &cobra.Command{
		Use:   "revoke-check KEY... --plugins HOST:PORT,...",
		Short: "Prove that a key which was taken away opens nothing any more",
		Long: `Ask every plugin whether, since when and why it opens nothing under the keys, and
every API server since when it runs: one that was started before the last plugin
closed may hold seeds in its memory (docs/revocation.md). Name all keys that were
taken away, co-recipients too. What cannot be asked is not proven. Nothing is
changed. Exit code 0: proven for those asked; 3: not proven.`,
		Example: `  kmsctl revoke-check prod --plugins 10.0.0.1:8082,10.0.0.2:8082 --since 2026-11-25T12:00:00Z
  kmsctl revoke-check prod spare --plugins 127.0.0.1:8082 --socket /run/kms-plugin/kms.sock --no-api-servers`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return f.run(c, args) },
	}
	f.kube.add(c)
	c.Flags().StringSliceVar(&f.plugins, "plugins", nil, "listenAddress of each plugin, as host:port")
	c.Flags().StringSliceVar(&f.sockets, "socket", nil, "also ask Status on these sockets of this node")
	c.Flags().StringVar(&f.since, "since", "", "when the key was taken away, as 2026-11-25T12:00:00Z")
	c.Flags().BoolVar(&f.o.NoServers, "no-api-servers", false, "look at the plugins alone")
	c.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	_ = c.MarkFlagRequired("plugins")
	_ = c.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func (f *revokeFlags) run(c *cobra.Command, names []string) error {
	if f.output != "text" && f.output != "json" {
		return cli.Usage(fmt.Errorf("-o %q is neither text nor json", f.output))
	}
	f.o.Keys = names
	if f.since != "" {
		var err error
		if f.o.Since, err = time.Parse(time.RFC3339, f.since); err != nil {
			return cli.WithHint(cli.Usage(fmt.Errorf("--since %q is not a time", f.since)), "such as --since $(date -u +%Y-%m-%dT%H:%M:%SZ)")
		}
	}
	state, err := f.look(c)
	if err != nil {
		return err
	}
	for _, s := range f.sockets {
		r, err := status.Ask(c.Context(), s, "")
		if err != nil {
			return err
		}
		f.o.Sockets = append(f.o.Sockets, r)
	}
	r := revocation.Judge(state, f.o)
	if f.output == "json" {
		err = printJSON(c.OutOrStdout(), r)
	} else {
		err = r.Print(c.OutOrStdout())
	}
	if err == nil && !r.Proven {
		return cli.ErrFound
	}
	return err
}

// look asks everybody. Identities need an API server that serves leases, which one
// without its key may not: that they are not known is a finding, no error.
func (f *revokeFlags) look(c *cobra.Command) (*fleet.State, error) {
	if f.o.NoServers {
		return fleet.Look(c.Context(), nil, "", f.plugins)
	}
	servers, err := kube.Connect(c.Context(), f.kube.Config)
	if err != nil {
		return nil, cli.WithHint(err, "--servers https://HOST:PORT,... if the API servers cannot tell, or --no-api-servers")
	}
	s, _ := fleet.Look(c.Context(), servers, "", f.plugins) // its error is an unknown of the report
	return s, nil
}
