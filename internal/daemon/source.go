package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/durable"
	"kms-plugin.io/pkg/keys"
)

// lastGood is the copy of the configuration in force, in the state directory.
const lastGood = "last-good.yaml"

// Source is where the configuration comes from: a file, or the one of --dev.
type Source struct {
	Path  string
	Fixed []byte // instead of a file; never reloaded
}

// candidate is a configuration that passed every check that needs no KMS.
type candidate struct {
	hash     string
	data     []byte
	config   *config.Config
	ring     *keys.Ring
	keks     map[string]keys.KEK
	rejected error                        // why the file on disk is not this one
	fallback func(cause error) *candidate // what to try when custody refuses it
}

// read gives the bytes of the file, once: what is hashed is what is parsed.
func (s Source) read() ([]byte, error) {
	if s.Fixed != nil {
		return s.Fixed, nil
	}
	f, err := os.OpenFile(s.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, cli.WithHint(fmt.Errorf("read configuration: %w", err), "see deploy/examples for a first one")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("configuration %q is not a regular file", s.Path)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, cli.WithHint(fmt.Errorf("configuration %q can be written by others (mode %#o)", s.Path, info.Mode().Perm()), "chmod go-w "+s.Path)
	}
	return io.ReadAll(io.LimitReader(f, 2<<20))
}

// parse takes bytes to a candidate.
func parse(ctx context.Context, data []byte, l links, before map[string]keys.KEK) (candidate, error) {
	c, problems := config.Parse(data)
	if problems.Fatal() != nil {
		return candidate{}, problems
	}
	ring, keks, problems := build(ctx, c, l, before)
	if problems != nil {
		return candidate{}, problems
	}
	none := func(error) *candidate { return nil }
	return candidate{hash: config.Hash(data), data: data, config: c, ring: ring, keks: keks, fallback: none}, nil
}

// first finds what a start can serve with. A file that does not load falls back
// to the last one that was in force: a typo must not keep a node from booting.
func (s Source) first(ctx context.Context, l links) (candidate, error) {
	data, err := s.read()
	if err != nil {
		return candidate{}, err
	}
	c, err := parse(ctx, data, l, nil)
	if err == nil {
		c.fallback = func(cause error) *candidate { return s.older(ctx, l, c.config.StateDir, c.hash, cause) }
		return c, nil
	}
	if dir := stateDirOf(data); dir != "" {
		if old := s.older(ctx, l, dir, config.Hash(data), err); old != nil {
			return *old, nil
		}
	}
	return candidate{}, err
}

// older is the last good copy, if there is one and it is another.
func (s Source) older(ctx context.Context, l links, dir, hash string, cause error) *candidate {
	if s.Fixed != nil {
		return nil
	}
	data, err := Source{Path: filepath.Join(dir, lastGood)}.read()
	if err != nil || config.Hash(data) == hash {
		return nil
	}
	c, err := parse(ctx, data, l, nil)
	if err != nil || c.config.StateDir != dir {
		return nil
	}
	c.rejected = cause
	return &c
}

// stateDirOf finds stateDir in a file that may be broken elsewhere.
func stateDirOf(data []byte) string { return config.StateDir(data) }

// keep writes the copy for the next start.
func (s Source) keep(c candidate) error {
	if s.Fixed != nil || c.rejected != nil {
		return nil
	}
	return durable.WriteFile(filepath.Join(c.config.StateDir, lastGood), c.data, 0o600)
}

// Check is what `config check` does: all that serve does before it listens.
func Check(ctx context.Context, path, previous string) (config.Problems, error) {
	data, err := Source{Path: path}.read()
	if err != nil {
		return nil, err
	}
	c, problems := config.Parse(data)
	if problems.Fatal() != nil {
		return problems, nil
	}
	if _, _, bad := build(ctx, c, links{}, nil); bad != nil {
		return append(problems, bad...), nil
	}
	if previous == "" {
		return problems, nil
	}
	data, err = Source{Path: previous}.read()
	if err != nil {
		return nil, err
	}
	old, bad := config.Parse(data)
	if bad.Fatal() != nil {
		return nil, errors.Join(fmt.Errorf("the file before, %q, is not valid itself", previous), bad)
	}
	return append(problems, config.Compare(old, c)...), nil
}
