package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"unsafe"

	"go.etcd.io/bbolt"
)

// tree looks at every page that bbolt will follow before bbolt does, for bbolt trusts
// them: a page that leads back to itself is followed for ever, or until the stack is
// full, which no recover stops; one that two others lead to is read twice, and so is
// all below it; and what lies behind the end of the file is other memory of this
// process.
//
// A page is id 8, flags 2, count 2, overflow 4 (how many pages follow that belong to it),
// and count elements of 16 bytes. Of a branch: pos 4, key size 4, page 8. Of a leaf: flags 4,
// pos 4, key size 4, value size 4. pos counts from the element. The value of a bucket is
// page 8, sequence 8, and if page is 0 a leaf, inline (bbolt internal/common).
type tree struct {
	data     []byte // of the database, without a snapshot's hash
	pageSize uint64
	pages    *mapping
	taken    []bool // by page
	n        int
}

const (
	branchPage  = 1
	leafPage    = 2
	bucketValue = 1
	pageHeader  = 16
	elementSize = 16
	bucketSize  = 16
	// maxDepth no file can need: a branch leads to two pages at least.
	maxDepth = 64
)

var (
	errPointer = errors.New("a page leads to one that is not there, or is another's")
	errHead    = errors.New("its head tells of no pages")
	errGone    = errors.New("one is not there any more")
	errPage    = errors.New("a page is not what it should be")
	errElement = errors.New("a page tells of more than it holds")
)

// checkTree goes through the pages of the buckets, and through those that lead to them.
func checkTree(ctx context.Context, db *bbolt.DB, tx *bbolt.Tx, pages *mapping) error {
	info, size := db.Info(), tx.Size() // which is pages times their size, if that has room
	if info.PageSize < pageHeader || size < 0 {
		return errHead
	}
	data := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(nil), info.Data)), size)
	t := &tree{data: data, pageSize: uint64(info.PageSize), pages: pages, taken: make([]bool, size/int64(info.PageSize))}
	return t.node(ctx, uint64(tx.Cursor().Bucket().Root()), 1, t.bucket)
}

// node checks a page and all below it, and hands the values of leaves on that are buckets.
func (t *tree) node(ctx context.Context, id uint64, depth int, bucket func(context.Context, []byte) error) error {
	if t.n++; t.n%checkEvery == 0 && ctx.Err() != nil {
		return ctx.Err()
	}
	p, err := t.take(id)
	if err != nil {
		return err
	}
	flags, count := binary.NativeEndian.Uint16(p[8:]), int(binary.NativeEndian.Uint16(p[10:]))
	switch {
	case binary.NativeEndian.Uint64(p) != id || depth > maxDepth:
		return errPage
	case pageHeader+count*elementSize > len(p):
		return errElement
	case flags == leafPage:
		return leaf(ctx, p, count, bucket)
	case flags != branchPage || count == 0:
		return errPage
	}
	for i := range count {
		e := p[pageHeader+i*elementSize:]
		if _, err := span(e, binary.NativeEndian.Uint32(e), binary.NativeEndian.Uint32(e[4:]), 0); err != nil {
			return err
		}
		if err := t.node(ctx, binary.NativeEndian.Uint64(e[8:]), depth+1, bucket); err != nil {
			return err
		}
	}
	return nil
}

// take is a page with those that belong to it, which no other page can have.
func (t *tree) take(id uint64) ([]byte, error) {
	n := uint64(len(t.taken))
	if id >= n {
		return nil, errPointer
	}
	p := t.data[id*t.pageSize:]
	t.pages.read(p[:pageHeader], nil)
	size := uint64(binary.NativeEndian.Uint32(p[12:])) + 1
	if size > n-id {
		return nil, errElement
	}
	for i := id; i < id+size; i++ {
		if t.taken[i] {
			return nil, errPointer
		}
		t.taken[i] = true
	}
	return p[:size*t.pageSize], nil
}

func leaf(ctx context.Context, p []byte, count int, bucket func(context.Context, []byte) error) error {
	for i := range count {
		e := p[pageHeader+i*elementSize:]
		v, err := span(e, binary.NativeEndian.Uint32(e[4:]), binary.NativeEndian.Uint32(e[8:]), binary.NativeEndian.Uint32(e[12:]))
		if err != nil {
			return err
		}
		if binary.NativeEndian.Uint32(e)&bucketValue == 0 || bucket == nil {
			continue
		}
		if err := bucket(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// span is the value of an element, which with its key lies within the page.
func span(e []byte, pos, key, value uint32) ([]byte, error) {
	from, to := uint64(pos)+uint64(key), uint64(pos)+uint64(key)+uint64(value)
	if to > uint64(len(e)) {
		return nil, errElement
	}
	return e[from:to], nil
}

// bucket checks the pages of one; those within it are none of etcd's and are not opened.
func (t *tree) bucket(ctx context.Context, v []byte) error {
	if len(v) < bucketSize {
		return errElement
	}
	if root := binary.NativeEndian.Uint64(v); root != 0 {
		return t.node(ctx, root, 1, nil)
	}
	p := v[bucketSize:]
	if len(p) < pageHeader {
		return errElement
	}
	count := int(binary.NativeEndian.Uint16(p[10:]))
	switch {
	case binary.NativeEndian.Uint16(p[8:]) != leafPage:
		return errPage
	case pageHeader+count*elementSize > len(p):
		return errElement
	}
	return leaf(ctx, p, count, nil)
}
