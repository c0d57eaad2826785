package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"kms-plugin.io/internal/bootstrap"
	"kms-plugin.io/internal/cli"
)

// maxInput bounds the files that init is given: both are read whole.
const maxInput = 1 << 20

type initFlags struct {
	p                   bootstrap.Params
	layout, run         string
	from, kubeadm       string
	dir, output         string
	stdout, force, show bool
	dryRun              bool
}

func initCommand() *cobra.Command {
	var f initFlags
	c := &cobra.Command{
		Use:   "init --cluster-id ID (--key-arn ARN | --localfile) --dir DIR",
		Short: "Write everything that one control-plane node needs to encrypt",
		Long: `Write a directory with everything for one control-plane node: configuration of
kms-plugin, static pod or systemd units, EncryptionConfiguration, flags and mounts
of kube-apiserver, AWS policies, alerts, and a README of the next commands. It asks
nobody and changes nothing but DIR. Equal flags give equal bytes.

For a cluster that runs already the EncryptionConfigurations come in steps: every
API server must be able to read what the plugin wrote before the first one lets it
write. --from moves in from the providers of a file that is in force.

What will be written is listed first; a file that is there with other contents is
replaced only with --force, or when the answer on a terminal is yes.`,
		Example: `  kmsctl init --cluster-id prod-eu-1 --key-arn arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab \
    --node-role arn:aws:iam::111122223333:role/control-plane --dir kms
  kmsctl init --cluster-id lab --localfile --existing-cluster --resources secrets,configmaps -o text`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.do(c) },
	}
	f.addTo(c)
	return c
}

func (f *initFlags) addTo(c *cobra.Command) {
	s := c.Flags()
	s.StringVar(&f.p.ClusterID, "cluster-id", "", "name of the cluster, unlike that of any other of yours; never changed again")
	s.StringVar(&f.p.KeyARN, "key-arn", "", "ARN of a symmetric key in AWS KMS")
	s.BoolVar(&f.p.LocalFile, "localfile", false, "a keyset in a file instead, for a lab")
	s.StringVar(&f.p.KeyName, "key-name", "kek-1", "name of the key, first part of key_id")
	s.StringVar(&f.p.Endpoint, "endpoint", "", "URL of AWS KMS, such as a VPC endpoint (default: that of the region)")
	s.StringVar(&f.p.NodeRole, "node-role", "", "ARN of the IAM role of the control-plane nodes")
	s.StringVar(&f.layout, "layout", string(bootstrap.Kubeadm), "who makes the manifest of kube-apiserver: kubeadm or generic")
	s.StringVar(&f.run, "run", string(bootstrap.StaticPod), "how the plugin runs: static-pod or systemd")
	s.StringVar(&f.p.Image, "image", bootstrap.Image, "image of the static pod, with its version")
	s.StringSliceVar(&f.p.Resources, "resources", nil, "what to encrypt, such as secrets,configmaps or *.* (default: secrets)")
	s.StringVar(&f.p.ProviderName, "provider-name", "kms-plugin", "name in the EncryptionConfiguration; never changed again")
	s.BoolVar(&f.p.Existing, "existing-cluster", false, "the cluster runs, and holds what is not encrypted")
	s.StringVar(&f.from, "from", "", "EncryptionConfiguration in force, to move in from; implies --existing-cluster")
	s.StringVar(&f.p.EncryptionPath, "encryption-path", "", "where API servers read the EncryptionConfiguration (default: "+bootstrap.EncryptionPath+", with --from that file)")
	s.StringVar(&f.kubeadm, "kubeadm-config", "", "file with ClusterConfiguration of kubeadm, to put flags and mounts into")
	s.StringVar(&f.dir, "dir", "", "directory to write; made with mode 0700 if it is not there")
	s.StringVarP(&f.output, "output", "o", "", "text or json: print the files, write nothing")
	s.BoolVar(&f.stdout, "stdout", false, "the same as -o text")
	s.BoolVar(&f.show, "show", false, "show the contents too, before they are written")
	s.BoolVar(&f.dryRun, "dry-run", false, "list what would be written, and write nothing")
	s.BoolVar(&f.force, "force", false, "replace files that are there, without asking")
}

func (f *initFlags) do(c *cobra.Command) error {
	if err := f.check(); err != nil {
		return err
	}
	if err := f.read(); err != nil {
		return err
	}
	files, err := bootstrap.Files(f.p)
	if err != nil {
		var e *bootstrap.Error
		if errors.As(err, &e) {
			return cli.Usage(err)
		}
		return err
	}
	switch f.output {
	case "text":
		return printFiles(c.OutOrStdout(), files)
	case "json":
		return printJSON(c.OutOrStdout(), asJSON(files))
	}
	if f.show {
		if err := printFiles(c.OutOrStdout(), files); err != nil {
			return err
		}
	}
	return f.write(c, files)
}

func (f *initFlags) check() error {
	if f.stdout && f.output == "" {
		f.output = "text"
	}
	f.p.Layout, f.p.Run = bootstrap.Layout(f.layout), bootstrap.Run(f.run)
	switch {
	case f.output != "" && f.output != "text" && f.output != "json":
		return cli.Usage(fmt.Errorf("-o %q is neither text nor json", f.output))
	case f.stdout && f.output != "text":
		return cli.Usage(fmt.Errorf("--stdout is -o text, and -o %s is given", f.output))
	case f.output == "" && f.dir == "":
		return cli.WithHint(cli.Usage(errors.New("where to?")), "give --dir DIR, or -o text to print the files")
	case f.output != "" && (f.dir != "" || f.force || f.dryRun || f.show):
		return cli.Usage(errors.New("-o prints and writes nothing: leave out --dir, --force, --dry-run and --show"))
	}
	return nil
}

// read takes in the files that are named.
func (f *initFlags) read() (err error) {
	if f.from != "" {
		if f.p.From, err = readInput("from", f.from); err != nil {
			return err
		}
		if f.p.EncryptionPath == "" && filepath.IsAbs(f.from) {
			f.p.EncryptionPath = f.from
		}
	}
	if f.kubeadm != "" {
		f.p.KubeadmConfig, err = readInput("kubeadm-config", f.kubeadm)
	}
	return err
}

func readInput(flag, path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxInput+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("--%s: %w", flag, err)
	case len(data) > maxInput:
		return nil, fmt.Errorf("--%s: %q has more than %d bytes", flag, path, maxInput)
	case len(data) == 0:
		return nil, fmt.Errorf("--%s: %q is empty", flag, path)
	}
	return data, nil
}

// printFiles shows every file, but no keys.
func printFiles(w io.Writer, files []bootstrap.File) error {
	for _, f := range files {
		body := string(f.Data)
		if f.Secret {
			body = "(not shown: it may hold keys or tokens of the file it was made from)\n"
		}
		if _, err := fmt.Fprintf(w, "=== %s, mode %#o, %d bytes\n%s\n", f.Path, f.Mode, len(f.Data), body); err != nil {
			return err
		}
	}
	return nil
}

type fileJSON struct {
	Path    string `json:"path"`
	Mode    string `json:"mode"`
	Bytes   int    `json:"bytes"`
	Hidden  bool   `json:"hidden,omitempty"` // it may hold keys, and is not shown
	Content string `json:"content,omitempty"`
}

func asJSON(files []bootstrap.File) any {
	out := struct {
		APIVersion string     `json:"apiVersion"`
		Files      []fileJSON `json:"files"`
	}{APIVersion: "kms-plugin.io/init/v1"}
	for _, f := range files {
		j := fileJSON{Path: f.Path, Mode: fmt.Sprintf("%#o", f.Mode), Bytes: len(f.Data), Hidden: f.Secret}
		if !f.Secret {
			j.Content = string(f.Data)
		}
		out.Files = append(out.Files, j)
	}
	return out
}

// confirmed asks on a terminal, and is false without one.
func confirmed(c *cobra.Command, question string) bool {
	in, ok := c.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return false
	}
	fmt.Fprintf(c.ErrOrStderr(), "%s [y/N] ", question)
	answer, err := bufio.NewReader(in).ReadString('\n')
	return err == nil && strings.EqualFold(strings.TrimSpace(answer), "y")
}
