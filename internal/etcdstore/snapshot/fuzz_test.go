package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"kms-plugin.io/internal/etcdstore"
)

func FuzzDecode(f *testing.F) {
	v, _ := proto.Marshal(&mvccpb.KeyValue{Key: []byte("/a"), Value: []byte("b"), ModRevision: 5, Lease: 1})
	f.Add(v)
	f.Fuzz(func(t *testing.T, in []byte) {
		kv, err := decode(in)
		if err != nil {
			return
		}
		var want mvccpb.KeyValue
		if err := proto.Unmarshal(in, &want); err != nil {
			return // stricter about UTF-8, groups and the like than we need to be
		}
		if !bytes.Equal(kv.Key, want.Key) || !bytes.Equal(kv.Value, want.Value) || kv.ModRevision != want.ModRevision {
			t.Fatalf("%v, want %v", kv, &want)
		}
	})
}

// small is a snapshot without its hash, as short as etcd's way of copying makes it.
func small(t testing.TB, pageSize int, history []change) []byte {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "small.db"), 0o600, &bbolt.Options{PageSize: pageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(func(tx *bbolt.Tx) error { return fill(tx, history) }); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := db.View(func(tx *bbolt.Tx) error { _, err := tx.WriteTo(&b); return err }); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func withHash(body []byte) []byte {
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

// A file as a whole. Whatever it is, it is read to an end or refused with one line, within
// a bound of time, and no more is visited than it can hold; what a hash covers is refused
// as soon as one bit is another. As most of what is changed breaks the checksum of bbolt's
// two heads, the same is tried with that put right.
func FuzzFile(f *testing.F) {
	var many []change
	for i := range 40 {
		many = append(many, change{fmt.Sprintf("/registry/secrets/ns/s%d", i%30), strings.Repeat("v", i%7)})
	}
	for _, body := range [][]byte{small(f, 512, many[:12]), small(f, 512, many), small(f, 4096, many[:9])} {
		f.Add(body)
		f.Add(withHash(body))
		f.Add(body[:len(body)-512])
		flipped := bytes.Clone(body)
		flipped[len(flipped)*2/3] ^= 4
		f.Add(flipped)
	}
	path := filepath.Join(f.TempDir(), "f.db")
	f.Fuzz(func(t *testing.T, in []byte) {
		hang := time.AfterFunc(20*time.Second, func() { panic("it is read for ever") })
		defer hang.Stop()
		for i, file := range [][]byte{in, mended(in)} {
			if i > 0 && bytes.Equal(file, in) {
				continue
			}
			got, verified, err := whole(t, path, file)
			if n := len(file) - hashSize; verified && !bytes.Equal(withHash(file[:n]), file) {
				t.Fatal("a hash that is wrong is taken for right")
			}
			if len(file)%pageUnit != 0 || len(file) == 0 {
				continue
			}
			again, verified, herr := whole(t, path, withHash(file))
			if !maps.Equal(got, again) || (err == nil) != (herr == nil) || !verified && herr == nil {
				t.Fatalf("with its hash it is %d keys, %v, verified %t; without %d, %v", len(again), herr, verified, len(got), err)
			}
			bad := withHash(file)
			bad[len(file)/3] ^= 1
			if _, _, err := whole(t, path, bad); err == nil || !strings.Contains(err.Error(), "not the one at its end") {
				t.Fatalf("one bit is another, and that is not noticed: %v", err)
			}
		}
	})
}

// whole reads a file as kmsctl does.
func whole(t *testing.T, path string, file []byte) (got map[string]string, verified bool, err error) {
	t.Helper()
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	got, info, err := scan(t.Context(), path)
	var e *Error
	switch {
	case err == nil && len(got) > len(file)/elementSize:
		t.Fatalf("%d keys are in %d bytes", len(got), len(file))
	case err != nil && (!errors.As(err, &e) || strings.Contains(err.Error(), "\n")):
		t.Fatalf("no error about the file in one line: %v", err)
	case err != nil:
		return nil, false, err
	}
	return got, info.Verified, nil
}

// mended has the checksums of both heads right, wherever pages of 512 or 4096 bytes put them.
func mended(in []byte) []byte {
	const magic, sums = 0xED0CDAED, 56
	out := bytes.Clone(in)
	for _, at := range []int{0, 512, 4096} {
		if len(out) < at+pageHeader+sums+8 || binary.NativeEndian.Uint32(out[at+pageHeader:]) != magic {
			continue
		}
		head := out[at+pageHeader:]
		h := fnv.New64a()
		_, _ = h.Write(head[:sums])
		binary.NativeEndian.PutUint64(head[sums:], h.Sum64())
	}
	return out
}

// Pages that bbolt would follow for ever, until the stack is full, or out of the file.
func TestPagesThatLeadAstray(t *testing.T) {
	var history []change
	for i := range 200 {
		history = append(history, change{fmt.Sprintf("/k%d", i), strings.Repeat("v", 50)})
	}
	good := small(t, 512, history)
	inline := small(t, 4096, history[:3])
	le := binary.NativeEndian
	page := func(b []byte, size int, kind, least uint16) int {
		for at := 2 * size; at < len(b); at += size {
			if le.Uint16(b[at+8:]) == kind && le.Uint16(b[at+10:]) >= least {
				return at
			}
		}
		t.Fatal("there is no such page")
		return 0
	}
	branch, full := page(good, 512, branchPage, 2), page(good, 512, leafPage, 3)
	root := page(inline, 4096, leafPage, 2)
	value := root + pageHeader + int(le.Uint32(inline[root+pageHeader+4:])) + int(le.Uint32(inline[root+pageHeader+8:]))
	for name, tt := range map[string]struct {
		of     []byte
		damage func(b []byte)
		want   error
	}{
		"a branch leads to itself":            {good, func(b []byte) { le.PutUint64(b[branch+pageHeader+8:], uint64(branch/512)) }, errPointer},
		"two lead to one":                     {good, func(b []byte) { copy(b[branch+pageHeader+8:branch+pageHeader+16], b[branch+2*pageHeader+8:]) }, errPointer},
		"a branch leads out of the file":      {good, func(b []byte) { le.PutUint64(b[branch+pageHeader+8:], 1<<40) }, errPointer},
		"a branch leads to a head":            {good, func(b []byte) { le.PutUint64(b[branch+pageHeader+8:], 1) }, errPage},
		"a branch of nothing":                 {good, func(b []byte) { le.PutUint16(b[branch+10:], 0) }, errPage},
		"more elements than a page holds":     {good, func(b []byte) { le.PutUint16(b[full+10:], 0xffff) }, errElement},
		"more pages than the file has":        {good, func(b []byte) { le.PutUint32(b[full+12:], 1<<20) }, errElement},
		"pages that are others'":              {good, func(b []byte) { le.PutUint32(b[full+12:], 2) }, errPointer},
		"a value longer than its page":        {good, func(b []byte) { le.PutUint32(b[full+pageHeader+12:], 1<<30) }, errElement},
		"a key that is elsewhere":             {good, func(b []byte) { le.PutUint32(b[full+pageHeader+4:], 1<<31) }, errElement},
		"an inline bucket that is a branch":   {inline, func(b []byte) { le.PutUint16(b[value+bucketSize+8:], branchPage) }, errPage},
		"an inline bucket of more than it is": {inline, func(b []byte) { le.PutUint16(b[value+bucketSize+10:], 0xffff) }, errElement},
		"a bucket without a head":             {inline, func(b []byte) { le.PutUint32(b[root+pageHeader+12:], 8) }, errElement},
		"a bucket in the page that names it":  {inline, func(b []byte) { le.PutUint64(b[value:], uint64(root/4096)) }, errPointer},
	} {
		file := bytes.Clone(tt.of)
		tt.damage(file)
		path := filepath.Join(t.TempDir(), "f.db")
		for _, b := range [][]byte{file, withHash(file)} {
			if _, _, err := whole(t, path, b); err == nil || !strings.Contains(err.Error(), "its pages are damaged: "+tt.want.Error()) {
				t.Errorf("%s: %v, want %q", name, err, tt.want)
			}
		}
	}
}

// Heads of bbolt that are whole, and say what cannot be.
func TestHeadsThatLie(t *testing.T) {
	good := small(t, 512, []change{{"/a", strings.Repeat("v", 4<<10)}}) // of a shorter one bbolt does not take the page size
	const pageSize, root, end = pageHeader + 8, pageHeader + 16, pageHeader + 40
	for name, damage := range map[string]func(head []byte){
		"no page size":              func(head []byte) { binary.NativeEndian.PutUint32(head[pageSize:], 0) },
		"pages of one byte":         func(head []byte) { binary.NativeEndian.PutUint32(head[pageSize:], 1) },
		"pages larger than it":      func(head []byte) { binary.NativeEndian.PutUint32(head[pageSize:], 1<<31) },
		"the root is a head":        func(head []byte) { binary.NativeEndian.PutUint64(head[root:], 0) },
		"the root is not there":     func(head []byte) { binary.NativeEndian.PutUint64(head[root:], 1<<50) },
		"no page at all":            func(head []byte) { binary.NativeEndian.PutUint64(head[end:], 0) },
		"a size that has no number": func(head []byte) { binary.NativeEndian.PutUint64(head[end:], 1<<63-1) },
	} {
		file := bytes.Clone(good)
		damage(file)
		damage(file[512:])
		if _, _, err := whole(t, filepath.Join(t.TempDir(), "f.db"), mended(file)); err == nil || strings.Contains(err.Error(), "runtime error") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that is cut while it is read ends in an error, whoever comes upon it: the reader, or
// the visitor in a value that was there.
func TestCutWhileItIsRead(t *testing.T) {
	var history []change
	for i := range 100 {
		history = append(history, change{fmt.Sprintf("/k%d", i), strings.Repeat("v", 8<<10)})
	}
	for _, visitor := range []bool{false, true} {
		path := write(t, history, true)
		s, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		cut := func(mine bool) {
			if mine {
				if err := os.Truncate(path, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		n := 0
		err = s.Scan(t.Context(), func(etcdstore.Info) (etcdstore.Visit, error) {
			cut(!visitor)
			return func(kv etcdstore.KV) error {
				cut(visitor)
				n += bytes.Count(kv.Value, []byte("v"))
				return nil
			}, nil
		})
		if err == nil || !strings.Contains(err.Error(), "its pages are damaged: "+errGone.Error()) || n != 0 {
			t.Errorf("cut in the visitor %t: %v, %d bytes", visitor, err, n)
		}
	}
}

// Revisions that are not in order would give a wrong one for the last.
func TestRevisionsOutOfOrder(t *testing.T) {
	file := small(t, 4096, []change{{"/a", "1"}, {"/b", "2"}, {"/c", "3"}})
	copy(file[bytes.Index(file, revision(4, false)):], revision(2, false))
	path := filepath.Join(t.TempDir(), "f.db")
	if _, _, err := whole(t, path, file); err == nil || !strings.Contains(err.Error(), "its revisions are not in order") {
		t.Errorf("%v", err)
	}
}
