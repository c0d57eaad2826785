package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/durable"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/etcdstore/live"
	"kms-plugin.io/internal/etcdstore/snapshot"
)

// etcdFlags are how etcd is reached; a control-plane node of kubeadm needs none.
type etcdFlags struct {
	live.Config
}

func (f *etcdFlags) add(c *cobra.Command) {
	d := live.Kubeadm()
	c.Flags().StringSliceVar(&f.Endpoints, "endpoints", d.Endpoints, "client URLs of etcd")
	c.Flags().StringVar(&f.CA, "cacert", d.CA, "certificate of etcd's CA")
	c.Flags().StringVar(&f.Cert, "cert", d.Cert, "client certificate for etcd")
	c.Flags().StringVar(&f.Key, "key", d.Key, "key of the client certificate")
}

// knowledgeFlags are what is known beside etcd.
type knowledgeFlags struct {
	plugin, prefix, keyID          string
	encryption, resources, require []string
}

func (f *knowledgeFlags) add(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.encryption, "encryption-config", nil, "EncryptionConfiguration of kube-apiserver: what should be encrypted, and how; of several only sockets may differ")
	c.Flags().StringVar(&f.plugin, "plugin-config", "", "configuration of kms-plugin: names for key_ids")
	c.Flags().StringVar(&f.prefix, "prefix", "/registry", "prefix of kube-apiserver in etcd (its --etcd-prefix)")
	c.Flags().StringVar(&f.keyID, "key-id", "", "key_id that counts as current (default: that of the newest value)")
	c.Flags().StringSliceVar(&f.resources, "resources", nil, "instead of --encryption-config: what should be encrypted, such as secrets,configmaps")
	c.Flags().StringArrayVar(&f.require, "require", nil, "exit with 3 unless all-on=KEY, none-on=KEY, none-needs=KEY, opened-by=KEY or no-plaintext; can be repeated")
}

func (f *knowledgeFlags) options() (o coverage.Options, err error) {
	o = coverage.Options{Prefix: strings.TrimSuffix(f.prefix, "/"), Resources: f.resources, Current: f.keyID}
	if len(f.encryption) > 0 && len(f.resources) > 0 {
		return o, cli.Usage(fmt.Errorf("--encryption-config and --resources exclude each other"))
	}
	if len(f.encryption) > 0 {
		all, err := loadEncryption(f.encryption)
		if err != nil {
			return o, err
		}
		o.Encryption = all[0]
	}
	if f.plugin != "" {
		if o.Names, err = loadNames(f.plugin); err != nil {
			return o, err
		}
	}
	for _, r := range f.require {
		q, err := coverage.ParseRequirement(r)
		if err == nil {
			err = q.Check(o)
		}
		if err != nil {
			return o, cli.Usage(err)
		}
		o.Gates = append(o.Gates, q)
	}
	return o, nil
}

func loadNames(path string) (*coverage.Names, error) {
	c, _, err := loadConfig(path)
	if err != nil {
		return nil, err
	}
	return coverage.NewNames(c, time.Now()), nil
}

func coverageCommand() *cobra.Command {
	var etcd etcdFlags
	var known knowledgeFlags
	var file, output, page string
	var unverified bool
	c := &cobra.Command{
		Use:   "coverage [--snapshot FILE]",
		Short: "Count in etcd what is stored under which key",
		Long: `Read every value of a live etcd, or of a snapshot file, at one revision, and
count by resource and key how it is stored. It needs no key and no plugin, and
writes nothing. Exit code 0: done, and every --require holds; 3: one does not; 2: none
is judged, for the file has no hash that tells whether it is damaged.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return cli.Usage(fmt.Errorf("-o %q is neither text nor json", output))
			}
			o, err := known.options()
			if err != nil {
				return err
			}
			bar := newProgress(c.ErrOrStderr(), "reading etcd")
			defer bar.end()
			source, closeSource, err := openSource(c.Context(), file, etcd.Config, bar)
			if err != nil {
				return err
			}
			defer closeSource()
			if err := judgeable(source, o.Gates, unverified); err != nil {
				return err
			}
			o.Progress = bar.set
			r, err := coverage.Scan(c.Context(), source, o)
			bar.end()
			if err != nil {
				return err
			}
			r.Command = commandLine(c)
			return deliver(c, r, output, page)
		},
	}
	etcd.add(c)
	known.add(c)
	c.Flags().StringVar(&file, "snapshot", "", "read this file of etcdctl snapshot save, or a copy of member/snap/db, instead of a live etcd")
	allowUnverified(c, &unverified)
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	c.Flags().StringVar(&page, "report", "", "also write a page for an auditor to this HTML file")
	for _, f := range []string{"endpoints", "cacert", "cert", "key"} {
		c.MarkFlagsMutuallyExclusive("snapshot", f)
	}
	return c
}

func openSource(ctx context.Context, file string, c live.Config, bar *progress) (etcdstore.Source, func(), error) {
	if file != "" {
		s, err := snapshot.Open(ctx, file)
		return s, func() {}, err
	}
	c.Compacted = func(revision int64) {
		bar.say("revision %d was compacted away while it was read; starting again", revision)
	}
	e, err := live.Dial(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	return e, func() { _ = e.Close() }, nil
}

const unverifiedFlag = "allow-unverified"

func allowUnverified(c *cobra.Command, to *bool) {
	c.Flags().BoolVar(to, unverifiedFlag, false, "judge a file that has no hash, as a copy of member/snap/db: damage in it cannot be told")
}

// judgeable refuses gates over a file of which nobody can tell whether it is damaged: a
// page that is not what it was would pass for one that holds nothing.
func judgeable(source etcdstore.Source, gates []coverage.Requirement, allowed bool) error {
	f, ok := source.(*snapshot.File)
	if !ok || f.Info().Verified || allowed || len(gates) == 0 {
		return nil
	}
	return cli.WithHint(cli.Usage(fmt.Errorf("--require over %q, which has no hash to verify: damage in it cannot be told", f.Info().File)),
		"take a snapshot with etcdctl snapshot save, or --"+unverifiedFlag+" to judge it all the same")
}

func deliver(c *cobra.Command, r *coverage.Report, output, page string) error {
	if page != "" {
		var b strings.Builder
		if err := r.WriteHTML(&b); err != nil {
			return err
		}
		if err := durable.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			return cli.WithHint(fmt.Errorf("report: %w", err), "--report FILE.html in a directory that can be written")
		}
	}
	err := printReport(c.OutOrStdout(), r, output)
	if err == nil && !r.Holds() {
		return cli.ErrFound
	}
	return err
}

func printReport(w io.Writer, r *coverage.Report, output string) error {
	if output == "json" {
		return printJSON(w, r)
	}
	return r.Print(w, terminalWidth(w))
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// terminalWidth is 0 if w is no terminal.
func terminalWidth(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			return width
		}
	}
	return 0
}

// commandLine repeats the flags that were given, for any shell.
func commandLine(c *cobra.Command) string {
	parts := []string{c.CommandPath()}
	for _, a := range os.Args[min(2, len(os.Args)):] {
		parts = append(parts, quoted(a))
	}
	return strings.Join(parts, " ")
}

// quoted is an argument as any shell reads it back.
func quoted(a string) string {
	if strings.ContainsFunc(a, func(r rune) bool { return !strings.ContainsRune(plainRunes, r) }) || a == "" {
		return "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return a
}

const plainRunes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./:,@+%"
