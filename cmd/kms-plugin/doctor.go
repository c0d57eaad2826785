package main

import (
	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/doctor"
	"kms-plugin.io/pkg/keys/awskms"
)

func doctorCommand() *cobra.Command {
	var o doctor.Options
	run := preflight.Options{Program: name + " doctor"}
	var output string
	c := &cobra.Command{
		Use:   "doctor --config FILE",
		Short: "Look at everything the plugin needs on this node, and name what is wrong",
		Long: `Look at everything the plugin needs on this node: configuration, credential, KMS
and key, what must be denied, socket and process. Each check has a result, a reason
and a remedy (docs/preflight.md). It wraps and unwraps one random value, asks by dry
runs, and changes nothing. Run it as the plugin runs: as its user, with its
environment. Exit code 0: no problem; 3: problems, or with --strict warnings.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := preflight.CheckFlags(output, run.Skip, doctor.Names()); err != nil {
				return cli.Usage(err)
			}
			awskms.ScrubEnvironment()
			r := preflight.Run(c.Context(), doctor.Checks(c.Context(), o), run)
			err := r.Write(c.OutOrStdout(), output)
			if err == nil && !r.Passed {
				return cli.ErrFound
			}
			return err
		},
	}
	c.Flags().StringVar(&o.Config, "config", "/etc/kms-plugin/config.yaml", "configuration file")
	c.Flags().StringVar(&o.STSEndpoint, "sts-endpoint", "", "URL of STS (default: that of the key's region)")
	c.Flags().StringVar(&o.Manifest, "manifest", "/etc/kubernetes/manifests/kube-apiserver.yaml", "static pod of kube-apiserver, which names the issuer of the cluster's tokens")
	c.Flags().BoolVar(&run.Strict, "strict", false, "warnings fail too")
	c.Flags().StringSliceVar(&run.Skip, "skip", nil, "names of checks to leave out")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}
