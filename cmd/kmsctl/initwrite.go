package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"kms-plugin.io/internal/bootstrap"
	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/durable"
)

// planned is what becomes of one file.
type planned struct {
	bootstrap.File
	at     string // full path
	change string // new, same, differs
}

// write lists, asks where something would be lost, and writes. A failure in the
// middle leaves whole files; the same command goes on from there.
func (f *initFlags) write(c *cobra.Command, files []bootstrap.File) error {
	plan, lost, err := f.plan(files)
	if err != nil {
		return err
	}
	listPlan(c.OutOrStdout(), f.dir, plan)
	if err := listOthers(c.OutOrStdout(), f.dir, plan); err != nil {
		return err
	}
	if f.dryRun {
		return nil
	}
	if lost > 0 && !f.force && !confirmed(c, fmt.Sprintf("replace %d files?", lost)) {
		return cli.WithHint(fmt.Errorf("%d files in %q differ from what would be written; nothing was written", lost, f.dir),
			"look at them, and give --force to replace them, or another --dir")
	}
	for _, p := range plan {
		if p.change == "same" {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(p.at), 0o700); err != nil {
			return fmt.Errorf("make a directory for %s: %w", p.Path, err)
		}
		if err := durable.WriteFile(p.at, p.Data, p.Mode); err != nil {
			return err
		}
	}
	if err := checkWritten(c.Context(), c.OutOrStdout(), f.dir, files); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "next: read %s\n", filepath.Join(f.dir, "README.md"))
	return err
}

// plan compares with what is there, and refuses what could not be written before
// anything is.
func (f *initFlags) plan(files []bootstrap.File) (plan []planned, lost int, err error) {
	if info, err := os.Stat(f.dir); err == nil && !info.IsDir() {
		return nil, 0, cli.WithHint(fmt.Errorf("--dir %q is not a directory", f.dir), "give another one")
	}
	for _, file := range files {
		p := planned{File: file, at: filepath.Join(f.dir, file.Path), change: "new"}
		info, err := os.Lstat(p.at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, 0, fmt.Errorf("look at what is there: %w", err)
		case !info.Mode().IsRegular():
			return nil, 0, cli.WithHint(fmt.Errorf("%q is in the way, and is not a regular file", p.at), "look at it and move it away, or give another --dir")
		default:
			have, err := os.ReadFile(p.at)
			if err != nil {
				return nil, 0, fmt.Errorf("look at what is there: %w", err)
			}
			p.change = "same"
			if !bytes.Equal(have, file.Data) {
				p.change = "differs"
				lost++
			} else if info.Mode().Perm() != file.Mode {
				p.change = "mode" // nothing is lost by writing it again
			}
		}
		plan = append(plan, p)
	}
	return plan, lost, nil
}

func listPlan(w io.Writer, dir string, plan []planned) {
	fmt.Fprintf(w, "in %s:\n", dir)
	for _, p := range plan {
		fmt.Fprintf(w, "  %04o %6d  %-8s %s\n", p.Mode, len(p.Data), p.change, p.Path)
	}
}

// listOthers names what is in the directory beside these files, such as files of
// an earlier run with other flags: nobody should install those by mistake. What a
// run that was killed left may hold keys of the file it was made from.
func listOthers(w io.Writer, dir string, plan []planned) error {
	ours := map[string]bool{}
	for _, p := range plan {
		ours[p.Path] = true
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == dir {
			return fs.SkipAll
		}
		if err != nil {
			return fmt.Errorf("look at what is there: %w", err)
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(path, filepath.Clean(dir)), "/")
		isLeft := func(p planned) bool { return durable.IsLeftOf(rel, p.Path) }
		switch {
		case d.IsDir() || ours[rel]:
		case slices.ContainsFunc(plan, isLeft):
			fmt.Fprintf(w, "  left by a run that was cut short, remove it: %s\n", rel)
		default:
			fmt.Fprintf(w, "  not of this command, left alone: %s\n", rel)
		}
		return nil
	})
}
