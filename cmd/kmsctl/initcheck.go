package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"kms-plugin.io/internal/bootstrap"
	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/cluster"
)

// checkWritten looks at what was written as kmsctl preflight does on a node, and
// prints what it finds. It asks nobody.
func checkWritten(ctx context.Context, w io.Writer, dir string, files []bootstrap.File) error {
	passed := true
	for _, f := range files {
		if !strings.HasPrefix(f.Path, "encryption/") {
			continue
		}
		var o preflight.Options
		if f.Path == bootstrap.ReadFile { // what it is for: the plugin reads, and does not write yet
			o.Skip = []string{"provider-order", "plain-resources"}
		}
		r := preflight.Run(ctx, cluster.OfFiles(filepath.Join(dir, bootstrap.ConfigFile), filepath.Join(dir, f.Path)), o)
		fmt.Fprintf(w, "preflight of %s and %s: %s\n", bootstrap.ConfigFile, f.Path, r.Verdict())
		for _, c := range r.Found() {
			fmt.Fprintf(w, "  %s: %s: %s\n    hint: %s\n", c.Level, c.Name, c.Message, c.Remedy)
		}
		passed = passed && r.Passed
	}
	if !passed {
		return cli.ErrFound
	}
	return nil
}
