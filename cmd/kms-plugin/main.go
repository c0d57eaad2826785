// Command kms-plugin is the KMS v2 server that runs beside every
// kube-apiserver.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
)

const name = "kms-plugin"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cli.Print(os.Stderr, name, err)
	os.Exit(cli.ExitCode(err))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := cli.Command(&cobra.Command{
		Use:   name,
		Short: "Encrypts the DEK seeds of kube-apiserver under a key in a KMS",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	})
	root.AddCommand(serveCommand(), waitCommand(), doctorCommand(), configCommand(), keygenCommand(), brokerCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}
