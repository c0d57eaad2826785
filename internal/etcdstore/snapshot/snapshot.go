// Package snapshot reads a snapshot file of etcd 3 (`etcdctl snapshot save`) or a
// copy of a member's member/snap/db, opened read-only. It knows the layout of
// go.etcd.io/etcd server/v3 storage/mvcc and nothing of the values.
package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"google.golang.org/protobuf/encoding/protowire"

	"kms-plugin.io/internal/etcdstore"
)

// Error is a file that is not a whole, readable snapshot.
type Error struct {
	Path   string
	Reason string
	Remedy string
}

func (e *Error) Error() string { return fmt.Sprintf("snapshot %q: %s", e.Path, e.Reason) }

// Hint is what to do about it.
func (e *Error) Hint() string { return e.Remedy }

// File is a snapshot whose bytes have been read and hashed once.
type File struct {
	path string
	info etcdstore.Info
}

var _ etcdstore.Source = (*File)(nil)

const (
	hashSize = sha256.Size
	pageUnit = 512 // every bbolt file is a multiple of it, a snapshot has the hash behind
)

// Open reads the file through once to verify its hash. Errors are *Error, but
// for ctx.
func Open(ctx context.Context, path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		var p *fs.PathError
		if errors.As(err, &p) {
			err = p.Err
		}
		return nil, &Error{path, err.Error(), "give the file that etcdctl snapshot save wrote"}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, &Error{path, err.Error(), ""}
	}
	if !st.Mode().IsRegular() {
		return nil, &Error{path, "not a regular file", "give the file that etcdctl snapshot save wrote"}
	}
	s := &File{path: path, info: etcdstore.Info{Kind: "snapshot", File: path, FileTime: st.ModTime().UTC(), Bytes: st.Size()}}
	if err := s.verify(ctx, f, st.Size()); err != nil {
		return nil, err
	}
	return s, nil
}

const makeAgain = "take it again: etcdctl snapshot save FILE"

// verify hashes the file, and holds what comes before a trailing hash against it.
func (s *File) verify(ctx context.Context, f io.Reader, size int64) error {
	if size == 0 {
		return &Error{s.path, "the file is empty", makeAgain}
	}
	hashed := size%pageUnit == hashSize
	if !hashed && size%pageUnit != 0 {
		return &Error{s.path, fmt.Sprintf("%d bytes are neither those of a snapshot nor of a database: it is truncated, or something else", size), makeAgain}
	}
	body := size
	if hashed {
		body -= hashSize
	}
	h := sha256.New()
	if _, err := io.CopyN(h, contextReader{ctx, f}, body); err != nil {
		return s.readError(ctx, err)
	}
	sum := h.Sum(nil)
	tail, err := io.ReadAll(io.LimitReader(f, hashSize+1))
	if err != nil {
		return s.readError(ctx, err)
	}
	if hashed && !bytes.Equal(sum, tail) {
		return &Error{s.path, "its SHA-256 is not the one at its end: it was damaged or changed", makeAgain}
	}
	_, _ = h.Write(tail)
	s.info.SHA256, s.info.Verified = hex.EncodeToString(h.Sum(nil)), hashed
	return nil
}

func (s *File) readError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &Error{s.path, err.Error(), makeAgain}
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// Info is what is known of the file; the revision only after Scan began.
func (s *File) Info() etcdstore.Info { return s.info }

// Scan implements etcdstore.Source. A page that is not there, or makes no sense,
// is an error and never a crash.
func (s *File) Scan(ctx context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var pages *mapping
	visiting := false
	defer func() {
		if p := recover(); p != nil {
			switch {
			case pages.faulted(p):
				err = s.damaged(ctx, errGone)
			case visiting:
				panic(p) // not about the file
			default:
				err = s.damaged(ctx, fmt.Errorf("%v", p))
			}
		}
	}()
	db, err := bbolt.Open(s.path, 0o400, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return s.openError(err)
	}
	defer db.Close()
	tx, err := db.Begin(false)
	if err != nil {
		return s.openError(err)
	}
	defer func() { _ = tx.Rollback() }()
	if tx.Size() > s.info.Bytes {
		return &Error{s.path, fmt.Sprintf("truncated: it should have %d bytes and has %d", tx.Size(), s.info.Bytes), makeAgain}
	}
	pages = newMapping(db, s.info.Bytes)
	if err := checkTree(ctx, db, tx, pages); err != nil {
		return s.damaged(ctx, err)
	}
	return s.reader(tx, pages).all(ctx, begin, &visiting)
}

func (s *File) damaged(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &Error{s.path, fmt.Sprintf("its pages are damaged: %v", err), makeAgain}
}

func (s *File) openError(err error) error {
	if errors.Is(err, berrors.ErrTimeout) {
		return &Error{s.path, "another process has it open", "never read the db file of a running member: take a snapshot, or copy the file"}
	}
	return &Error{s.path, fmt.Sprintf("not a database of etcd: %v", err), "is it compressed or encrypted? undo that first"}
}

var errKeyValue = errors.New("not a KeyValue")

// decode reads the fields we need of mvccpb.KeyValue (api/mvccpb/kv.proto: 1 key,
// 3 mod_revision, 5 value) without copying them.
func decode(b []byte) (etcdstore.KV, error) {
	var kv etcdstore.KV
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return kv, errKeyValue
		}
		b = b[n:]
		switch {
		case typ == protowire.BytesType && (num == 1 || num == 5):
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return kv, errKeyValue
			}
			if num == 1 {
				kv.Key = v
			} else {
				kv.Value = v
			}
			b = b[n:]
		case typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return kv, errKeyValue
			}
			if num == 3 {
				kv.ModRevision = int64(v)
			}
			b = b[n:]
		default:
			return kv, errKeyValue
		}
	}
	if len(kv.Key) == 0 {
		return kv, errKeyValue
	}
	return kv, nil
}
