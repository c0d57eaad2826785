package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// maxLine bounds a line: eight fields of maxField, each byte escaped to six.
	maxLine = 64 << 10
	// tailWindow is how far back the last record is looked for, at first and at
	// most: behind it there is only what crashes and full disks cut.
	tailWindow    = 2 * maxLine
	maxTailWindow = 16 << 20
)

// openAppend opens or creates the file, mode 0600, and locks it: two writers
// would tear the chain apart. It is nil if that file is in use already.
func openAppend(path string, used *os.File) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	same, err := check(f, path, used)
	if err == nil && !same {
		return f, nil
	}
	if err != nil {
		err = fmt.Errorf("open audit log: %w", err)
	}
	return nil, errors.Join(err, f.Close())
}

func check(f *os.File, path string, used *os.File) (same bool, err error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return false, err
	case !info.Mode().IsRegular():
		return false, fmt.Errorf("%q is not a regular file", path)
	case info.Mode().Perm()&0o077 != 0:
		return false, fmt.Errorf("%q has mode %#o and others could read or change it: chmod 600 it", path, info.Mode().Perm())
	}
	if used != nil {
		if old, err := used.Stat(); err == nil && os.SameFile(old, info) {
			return true, nil
		}
	}
	if errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK) {
		return false, fmt.Errorf("%q is written by another process: give each instance a log of its own", path)
	}
	return false, nil
}

// tail is the end of a log.
type tail struct {
	head  Head   // of the last whole record; Seq 0: there is none
	torn  string // digest of what follows it and is no record, "" for nothing
	open  bool   // the file ends within a line
	empty bool
}

// readTail finds the last whole record of a file and what follows it. A record
// is whole also without its newline.
func readTail(f *os.File) (tail, error) {
	info, err := f.Stat()
	if err != nil {
		return tail{}, err
	}
	for window := int64(tailWindow); ; window *= 4 {
		from := max(0, info.Size()-window)
		data := make([]byte, info.Size()-from)
		if _, err := f.ReadAt(data, from); err != nil && !errors.Is(err, io.EOF) {
			return tail{}, err
		}
		t := endOf(data)
		if t.head.Seq > 0 || from == 0 || window >= maxTailWindow {
			return t, nil
		}
	}
}

// endOf looks for the last record in the last bytes of a file.
func endOf(data []byte) tail {
	t := tail{empty: len(data) == 0, open: len(data) > 0 && data[len(data)-1] != '\n'}
	rest := bytes.TrimSuffix(data, []byte{'\n'})
	for end := len(rest); end >= 0 && !t.empty; {
		start := bytes.LastIndexByte(rest[:end], '\n') + 1
		if r, err := Parse(rest[start:end]); err == nil && r.Seq <= maxSeq/2 { // there is room for more
			t.head = HeadOf(r, rest[start:end])
			if end < len(rest) {
				t.torn = DigestOf(rest[end+1:]).String()
			}
			return t
		}
		end = start - 1
	}
	if !t.empty {
		t.torn = DigestOf(rest).String()
	}
	return t
}

// before finds the end of the chain when the file is new: in the youngest file
// whose name starts like its own, as logrotate names them.
func before(path string) tail {
	var name string
	var youngest time.Time
	entries, _ := os.ReadDir(filepath.Dir(path)) // none found: a new chain
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() && e.Name() != filepath.Base(path) && info.Size() > 0 &&
			strings.HasPrefix(e.Name(), filepath.Base(path)) && info.ModTime().After(youngest) {
			name, youngest = e.Name(), info.ModTime()
		}
	}
	if name == "" {
		return tail{empty: true}
	}
	f, err := os.OpenFile(filepath.Join(filepath.Dir(path), name), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return tail{empty: true}
	}
	defer f.Close()
	t, err := readTail(f)
	if err != nil || t.head.Seq == 0 {
		return tail{empty: true}
	}
	t.open = false // that line stays as it is
	return t
}
