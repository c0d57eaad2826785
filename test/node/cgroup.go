package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies are the mounted cgroup v1 hierarchies.
func hierarchies() ([]string, error) {
	found, _ := filepath.Glob(cgroupRoot + "/*/cgroup.clone_children") // only v1 has it
	var out []string
	for _, f := range found {
		dir := filepath.Dir(f)
		if i, err := os.Lstat(dir); err == nil && i.Mode()&fs.ModeSymlink == 0 {
			out = append(out, dir)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no cgroup v1 hierarchy in %s: nodes on cgroup v2 are not supported", cgroupRoot)
	}
	return out, nil
}

// makeCgroups makes a cgroup of that name in every hierarchy.
func makeCgroups(name string) error {
	dirs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range dirs {
		dir := h
		for part := range strings.SplitSeq(name, "/") {
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := inheritCpuset(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritCpuset: a new cpuset has no CPU, and nothing can be put into it.
func inheritCpuset(dir string) error {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(dir), f))
		if errors.Is(err, fs.ErrNotExist) {
			continue // another hierarchy
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, f), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes what is empty of the cgroups of that name: all, once
// their processes are gone.
func removeCgroups(name string) {
	dirs, _ := hierarchies()
	for _, h := range dirs {
		var all []string
		_ = filepath.WalkDir(filepath.Join(h, name), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		slices.Reverse(all) // children first
		for _, dir := range all {
			_ = os.Remove(dir) // not empty: the next run tries again
		}
	}
}
