package snapshot

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"go.etcd.io/bbolt"

	"kms-plugin.io/internal/etcdstore"
)

const (
	revisionSize = 17 // 8 bytes main, '_', 8 bytes sub; and 't' behind for a deletion
	checkEvery   = 1 << 12
	// maxSeen bounds memory: with more revisions than this the file is read in
	// several passes, each for a share of the keys.
	maxSeen = 4 << 20
)

// reader goes through the revisions of an open file.
type reader struct {
	*File
	tx    *bbolt.Tx
	keys  *bbolt.Bucket // nil if the file is not etcd's
	pages *mapping
	seen  *seen
}

func (s *File) reader(tx *bbolt.Tx, pages *mapping) *reader {
	return &reader{s, tx, tx.Bucket([]byte("key")), pages, nil}
}

// all visits every key; visiting is true while the visitor has it.
func (r *reader) all(ctx context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error), visiting *bool) error {
	if r.keys == nil {
		return &Error{r.path, "a bbolt database, but not one of etcd: it has no bucket \"key\"", "give the file that etcdctl snapshot save wrote"}
	}
	info, revisions, err := r.describe(ctx)
	if err != nil {
		return err
	}
	visit, err := begin(info)
	if err != nil {
		return err
	}
	guarded := func(kv etcdstore.KV) error {
		*visiting = true
		err := visit(kv)
		*visiting = false
		return err
	}
	passes := 1 + revisions/maxSeen
	for pass := range passes {
		if err := r.pass(ctx, pass, passes, revisions, guarded); err != nil {
			return err
		}
	}
	return nil
}

// describe finds the revision and counts the revisions there are.
func (r *reader) describe(ctx context.Context) (etcdstore.Info, int, error) {
	info, n := r.info, 0
	var last []byte
	c := r.keys.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		r.pages.read(k, v)
		if len(k) != revisionSize && len(k) != revisionSize+1 {
			return info, 0, &Error{r.path, "a key of bucket \"key\" is no revision", makeAgain}
		}
		if bytes.Compare(k, last) <= 0 { // as damage does it
			return info, 0, &Error{r.path, "its revisions are not in order", makeAgain}
		}
		last = append(last[:0], k...) // its page may be let go
		info.Revision = int64(binary.BigEndian.Uint64(k))
		if n%checkEvery == 0 && ctx.Err() != nil {
			return info, 0, ctx.Err()
		}
		n++
	}
	if meta := r.tx.Bucket([]byte("meta")); meta != nil {
		if v := meta.Get([]byte("finishedCompactRev")); len(v) >= 8 {
			info.Compacted = int64(binary.BigEndian.Uint64(v))
		}
		if v := meta.Get([]byte("storageVersion")); len(v) > 0 && len(v) < 32 {
			info.Version = string(v)
		}
	}
	info.Revision = max(info.Revision, info.Compacted)
	info.Keys = int64(n)
	return info, n, nil
}

// pass goes from the newest revision to the oldest: the first sight of a key is
// its state, and older ones are history.
func (r *reader) pass(ctx context.Context, pass, passes, revisions int, visit etcdstore.Visit) error {
	if r.seen == nil {
		r.seen = newSeen(revisions / passes)
	}
	r.seen.clear() // two of them would not fit
	c := r.keys.Cursor()
	n := 0
	for k, v := c.Last(); k != nil; k, v = c.Prev() {
		r.pages.read(k, v)
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		kv, err := decode(v)
		if err != nil {
			return &Error{r.path, fmt.Sprintf("revision %d is damaged: %v", binary.BigEndian.Uint64(k), err), makeAgain}
		}
		first, mine := r.seen.add(kv.Key, pass, passes)
		if !mine || !first || len(k) == revisionSize+1 {
			continue
		}
		if err := visit(kv); err != nil {
			return err
		}
	}
	return nil
}
