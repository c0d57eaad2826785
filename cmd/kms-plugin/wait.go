package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/await"
	"kms-plugin.io/internal/cli"
)

func waitCommand() *cobra.Command {
	o := await.Options{Poll: await.DefaultPoll}
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "wait [--socket PATH] [--timeout D]",
		Short: "Wait until a plugin serves its socket",
		Long: `Wait until the plugin on a socket answers Status as kube-apiserver wants it: for
an init container or a unit that must start after it. With --listening the socket
need only accept, which it does also while the KMS is away. Exit code 0: it serves;
1: it does not, and why.`,
		Example: `  kms-plugin wait --timeout 2m
  kms-plugin wait --socket /run/kms-plugin/kms.sock --listening`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return cli.Usage(fmt.Errorf("--timeout %s is not above zero", timeout))
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			return await.Served(ctx, o)
		},
	}
	c.Flags().StringVar(&o.Socket, "socket", "/run/kms-plugin/kms.sock", "socket of the plugin")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "give up after this")
	c.Flags().BoolVar(&o.Listening, "listening", false, "wait only until the socket accepts, not until Status is ok")
	return c
}
