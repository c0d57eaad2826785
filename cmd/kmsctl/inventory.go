package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/etcdstore/snapshot"
)

func inventoryCommand() *cobra.Command {
	var plugin, prefix, output, keep string
	c := &cobra.Command{
		Use:   "inventory DIR|FILE...",
		Short: "Tell which keys a set of etcd snapshots needs, and until when",
		Long: `Read snapshot files, or all *.db files of directories, and tell which keys each
needs to be readable; then of each key the last snapshot that needs it. All of
them must be readable: a set with a hole proves nothing.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return cli.Usage(fmt.Errorf("-o %q is neither text nor json", output))
			}
			kept, err := days(keep)
			if err != nil {
				return cli.Usage(err)
			}
			known := knowledgeFlags{plugin: plugin, prefix: prefix}
			o, err := known.options()
			if err != nil {
				return err
			}
			sources, err := openSnapshots(c.Context(), args)
			if err != nil {
				return err
			}
			bar := newProgress(c.ErrOrStderr(), "reading snapshots")
			defer bar.end()
			o.Progress = bar.set
			inv, err := coverage.Take(c.Context(), sources, o, kept)
			bar.end()
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(c.OutOrStdout(), inv)
			}
			return inv.Print(c.OutOrStdout(), terminalWidth(c.OutOrStdout()))
		},
	}
	c.Flags().StringVar(&keep, "keep", "", "how long snapshots are kept, such as 30d: tells the first day on which a key may go")
	c.Flags().StringVar(&plugin, "plugin-config", "", "configuration of kms-plugin: names for key_ids")
	c.Flags().StringVar(&prefix, "prefix", "/registry", "prefix of kube-apiserver in etcd (its --etcd-prefix)")
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

// days reads 30d, or what time.ParseDuration reads.
func days(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	const limit = 100 * 366 // days: beyond, a time.Duration has no room
	if n, ok := strings.CutSuffix(s, "d"); ok {
		if d, err := strconv.Atoi(n); err == nil && d > 0 && d < limit {
			return time.Duration(d) * 24 * time.Hour, nil
		}
	} else if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return d, nil
	}
	return 0, fmt.Errorf("--keep %q is not a time such as 30d or 720h", s)
}

// openSnapshots opens the files, or all *.db files of directories.
func openSnapshots(ctx context.Context, args []string) (out []etcdstore.Source, err error) {
	files, err := snapshotFiles(args)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		s, err := snapshot.Open(ctx, f)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func snapshotFiles(args []string) (out []string, err error) {
	for _, a := range args {
		info, err := os.Stat(a)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			out = append(out, a)
			continue
		}
		found, err := filesIn(a)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, cli.WithHint(fmt.Errorf("no *.db file in directory %q", a), "give the files by name if they end otherwise")
		}
		out = append(out, found...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func filesIn(dir string) (out []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if !e.IsDir() && filepath.Ext(e.Name()) == ".db" {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, err
}
