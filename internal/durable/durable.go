// Package durable writes files that must be whole after a crash at any moment.
// It knows nothing of what is in them.
package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// WriteFile replaces path by a file with this data and mode: a reader, and the
// next start after a crash, find the old content or the new, never a part.
//
//	write temp   crash: a stray .tmp-* file, path untouched
//	fsync temp   crash: the same
//	rename       crash: old or new, both whole
//	fsync dir    when it returns nil the new content survives power loss
//
// On failure the temporary file is removed and path is as it was, unless only
// the last step failed: then the new content is there, but may not survive.
func WriteFile(path string, data []byte, perm os.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, temporary(path))
	if err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // gone already if the rename was done
			err = fmt.Errorf("write %q: %w", path, err)
		}
	}()
	_, werr := f.Write(data)
	if err := errors.Join(werr, f.Chmod(perm), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func temporary(path string) string { return ".tmp-" + filepath.Base(path) + "-" }

// IsLeftOf says whether a file is what a crash left of a WriteFile to path. Nobody
// reads it, and it can be removed when no WriteFile to path is under way.
func IsLeftOf(file, path string) bool {
	return filepath.Dir(file) == filepath.Dir(path) && strings.HasPrefix(filepath.Base(file), temporary(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
