// Command kmsctl is the operator's tool around kms-plugin. Installed under the
// name kubectl-kms it is a kubectl plugin.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/status"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	name := programName(os.Args[0])
	err := run(ctx, name, os.Args[1:], os.Stdout, os.Stderr)
	cli.Print(os.Stderr, name, err)
	os.Exit(cli.ExitCode(err))
}

// programName is what the user typed: kubectl runs plugins as kubectl-<name>.
func programName(arg0 string) string {
	if base := filepath.Base(arg0); strings.HasPrefix(base, "kubectl-") {
		return "kubectl " + strings.TrimPrefix(base, "kubectl-")
	}
	return "kmsctl"
}

func run(ctx context.Context, name string, args []string, stdout, stderr io.Writer) error {
	root := rootCommand(name)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

func rootCommand(name string) *cobra.Command {
	root := cli.Command(&cobra.Command{
		Use:         "kmsctl",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: name},
		Short:       "Looks after encryption at rest with kms-plugin",
		Args:        cobra.NoArgs,
		RunE:        func(c *cobra.Command, _ []string) error { return c.Help() },
	})
	root.AddCommand(statusCommand(), preflightCommand(), coverageCommand(), inventoryCommand(), drillCommand(), canaryCommand(), rotateCommand(), retireCommand(), revokeCheckCommand(), auditCommand(), initCommand())
	return root
}

func statusCommand() *cobra.Command {
	var socket, address, output string
	c := &cobra.Command{
		Use:   "status --socket PATH [--metrics HOST:PORT]",
		Short: "Show what kube-apiserver sees of the plugin, and what the plugin knows",
		Long: `Show what kube-apiserver sees of the plugin and, from its metrics, what the
plugin knows. Exit code 0: healthy; 3: not healthy; 1: it cannot be reached.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return cli.Usage(fmt.Errorf("-o %q is neither text nor json", output))
			}
			r, err := status.Ask(c.Context(), socket, address)
			if err != nil {
				return err
			}
			if err := print(c.OutOrStdout(), r, output); err != nil {
				return err
			}
			if !r.Healthy {
				return cli.ErrFound
			}
			return nil
		},
	}
	c.Flags().StringVar(&socket, "socket", "/run/kms-plugin/kms.sock", "socket of the plugin")
	c.Flags().StringVar(&address, "metrics", "", "listenAddress of the plugin, such as 127.0.0.1:8082")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func print(w io.Writer, r status.Report, output string) error {
	if output == "text" {
		return r.Print(w)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
