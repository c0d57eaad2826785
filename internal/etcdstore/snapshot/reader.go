package snapshot

import (
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

func (s *File) reader(db *bbolt.DB, tx *bbolt.Tx) *reader {
	return &reader{s, tx, tx.Bucket([]byte("key")), newMapping(db, s.info.Bytes), nil}
}

// describe finds the revision and counts the revisions there are.
func (r *reader) describe(ctx context.Context) (etcdstore.Info, int, error) {
	info, n := r.info, 0
	c := r.keys.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		r.pages.read(k, v)
		if len(k) != revisionSize && len(k) != revisionSize+1 {
			return info, 0, &Error{r.path, "a key of bucket \"key\" is no revision", makeAgain}
		}
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
