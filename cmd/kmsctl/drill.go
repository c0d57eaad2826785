package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/drill"
	"kms-plugin.io/internal/etcdstore/snapshot"
	"kms-plugin.io/internal/kmsclient"
)

func drillCommand() *cobra.Command {
	var file, socket, provider, output string
	c := &cobra.Command{
		Use:   "drill --snapshot FILE [--socket PATH]",
		Short: "Rehearse a restore: open every DEK seed of a snapshot",
		Long: `Ask a running plugin to open every distinct DEK seed of a snapshot, and decrypt
one object under each in memory. Prints counts and causes, never contents. The
plugin's audit log has the calls, with the uid kmsctl-drill. Exit code 0:
everything opens; 3: something does not.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return cli.Usage(fmt.Errorf("-o %q is neither text nor json", output))
			}
			plugin, err := kmsclient.Dial(socket)
			if err != nil {
				return err
			}
			defer plugin.Close()
			source, err := snapshot.Open(c.Context(), file)
			if err != nil {
				return err
			}
			bar := newProgress(c.ErrOrStderr(), "opening seeds")
			defer bar.end()
			r, err := drill.Run(c.Context(), source, plugin, drill.Options{Provider: provider, Progress: bar.set})
			bar.end()
			if err != nil {
				return err
			}
			if err := printDrill(c.OutOrStdout(), r, output); err != nil {
				return err
			}
			if !r.Passed() {
				return cli.ErrFound
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "snapshot", "", "file of etcdctl snapshot save, or a copy of member/snap/db")
	c.Flags().StringVar(&socket, "socket", "/run/kms-plugin/kms.sock", "socket of the plugin")
	c.Flags().StringVar(&provider, "provider", "", "only values of the KMS provider with this name")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	_ = c.MarkFlagRequired("snapshot")
	return c
}

func printDrill(w io.Writer, r *drill.Report, output string) error {
	if output == "json" {
		return printJSON(w, r)
	}
	verified := "hash verified"
	if !r.Source.Verified {
		verified = "no hash to verify"
	}
	fmt.Fprintf(w, "snapshot %q, %s, revision %d: %d objects, %d under KMS v2, %d broken, %d encrypted in another way and not rehearsed\n",
		r.Source.File, verified, r.Source.Revision, r.Objects, r.KMSv2, r.Broken, r.Others)
	for _, k := range r.Keys {
		fmt.Fprintf(w, "%s, key_id %q: %d of %d seeds open, for %d objects\n", k.Provider, k.KeyID, k.Opened, k.Seeds, k.Objects)
		for _, f := range k.Failures {
			fmt.Fprintf(w, "  %d shut: %q, such as %q\n", f.Seeds, f.Cause, f.Key)
		}
	}
	_, err := fmt.Fprintf(w, "%d of %d seeds open, in %.1f s and %d calls to the plugin\n", r.Opened, r.Seeds, r.Seconds, r.Calls)
	return err
}
