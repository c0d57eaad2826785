// Command image builds the container image of kms-plugin without a container
// engine: for amd64 and arm64, from scratch, with the program, the roots that TLS
// to a cloud needs, and a list of what is inside. The same source, version and Go
// give the same bytes, on any machine and in any folder; so whoever doubts an image
// builds it again. It is a module of its own, so that what it needs is no
// dependency of kms-plugin.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image: error:", err)
		os.Exit(1)
	}
}

// options are what the bytes depend on, besides the source and the Go toolchain.
type options struct {
	source, out string // folders
	ref         string // name:tag
	version     string // what the program says of itself
	revision    string // of the source
	created     time.Time
	platforms   []string
	goCache     string // for tests: not the user's
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	var o options
	var epoch, platforms string
	f := flag.NewFlagSet("image", flag.ContinueOnError)
	f.StringVar(&o.source, "source", ".", "folder of kms-plugin's source")
	f.StringVar(&o.out, "out", "bin", "folder for the result")
	f.StringVar(&o.ref, "ref", "kms-plugin.example/kms-plugin:unreleased", "name and tag of the image")
	f.StringVar(&o.version, "version", "", "version (default: devel- and the commit)")
	f.StringVar(&platforms, "platforms", "amd64,arm64", "architectures")
	f.StringVar(&epoch, "epoch", os.Getenv("SOURCE_DATE_EPOCH"), "time of the image, in seconds since 1970 (default: of the commit)")
	if err := f.Parse(args); err != nil {
		return err
	}
	o.platforms = strings.Split(platforms, ",")
	if err := o.describe(ctx, epoch); err != nil {
		return err
	}
	digest, err := build(ctx, o)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s\n%s@%s\n", filepath.Join(o.out, archiveName), o.ref, digest)
	return err
}

// describe asks git for what was not given. Without git it is a fixed value: a
// guess would change from build to build.
func (o *options) describe(ctx context.Context, epoch string) error {
	git := func(args ...string) string {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", o.source}, args...)...).Output()
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	o.revision = git("rev-parse", "HEAD")
	modified := o.revision != "" && git("status", "--porcelain") != ""
	if o.revision == "" {
		o.revision = "unknown"
	}
	if o.version == "" {
		o.version = "devel-" + o.revision[:min(12, len(o.revision))]
	}
	if modified {
		o.revision += "-modified"
		o.version += "+modified"
	}
	if epoch == "" {
		epoch = git("log", "-1", "--format=%ct")
	}
	if epoch == "" {
		epoch = "0"
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return fmt.Errorf("the time %q is not in seconds since 1970", epoch)
	}
	o.created = time.Unix(seconds, 0).UTC()
	if !strings.Contains(o.ref, "/") || !strings.Contains(o.ref[strings.LastIndex(o.ref, "/"):], ":") {
		return errors.New("-ref must hold a name and a tag, such as registry.example.com/kms-plugin:v1")
	}
	return nil
}
