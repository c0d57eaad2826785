package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/daemon"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/pkg/keys/localfile"
)

func configCommand() *cobra.Command {
	parent := &cobra.Command{Use: "config", Short: "Look at configuration files", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	previous := ""
	check := &cobra.Command{
		Use:   "check FILE",
		Short: "Do all that serve does before it listens, offline, and name every fault",
		Long: `Do all that serve does before it listens, offline, and name every fault with
its line and its remedy. With --previous also what one file alone cannot show: a
key dropped too early, a key_id that would be used again.

Exit code 0: fine; 3: problems were found; 1: a file could not be read.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			awskms.ScrubEnvironment()
			problems, err := daemon.Check(c.Context(), args[0], previous)
			if err != nil {
				return err
			}
			if len(problems) > 0 {
				fmt.Fprintln(c.OutOrStdout(), problems)
			}
			if problems.Fatal() != nil {
				return cli.ErrFound
			}
			fmt.Fprintln(c.OutOrStdout(), args[0]+": OK")
			return nil
		},
	}
	check.Flags().StringVar(&previous, "previous", "", "the file that is in force now")
	parent.AddCommand(check)
	return parent
}

func keygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen FILE",
		Short: "Make a keyset for localfile: a new file, mode 0600, never replaced",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := localfile.Create(args[0]); err != nil {
				return err
			}
			fmt.Fprintf(c.ErrOrStderr(), "made %s: keep a copy of it where no node can lose it; without it every Secret under it is lost\n", args[0])
			return nil
		},
	}
}
