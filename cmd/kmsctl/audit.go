package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/audit/evidence"
	"kms-plugin.io/internal/cli"
)

func auditCommand() *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "Check the audit log of kms-plugin"}
	c.AddCommand(auditVerifyCommand())
	return c
}

func auditVerifyCommand() *cobra.Command {
	var anchors []string
	var output string
	var partial bool
	c := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Find what was edited, removed, added or reordered in audit logs",
		Long: `Read the files of audit logs, rotated and compressed ones too and in any order,
and check that each record follows the one before. --anchors names files of
CloudTrail events: the calls of probes hold the digest of the log at their time,
which nobody on the node can change. Nothing is claimed of records after the last
anchor. Nothing is written. Exit code 0: nothing found; 3: something was.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return cli.Usage(fmt.Errorf("-o %q is neither text nor json", output))
			}
			known, err := evidence.LoadAnchors(anchors)
			if err != nil {
				return cli.WithHint(err, "give files of a trail in S3, or the output of: aws cloudtrail lookup-events --output json")
			}
			r, err := evidence.Verify(args, known, partial)
			if err != nil {
				return err
			}
			if output == "json" {
				err = printJSON(c.OutOrStdout(), r)
			} else {
				err = r.Print(c.OutOrStdout())
			}
			if err == nil && !r.Holds {
				return cli.ErrFound
			}
			return err
		},
	}
	c.Flags().StringArrayVar(&anchors, "anchors", nil, "file of CloudTrail events, as in S3 or from lookup-events; can be repeated")
	c.Flags().BoolVar(&partial, "partial", false, "the files are not those of all instances: pass over anchors of other logs")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}
