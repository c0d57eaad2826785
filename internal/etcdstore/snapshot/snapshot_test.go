package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"kms-plugin.io/internal/etcdstore"
)

// history is what an etcd was told, one revision each; an empty value deletes.
type change struct{ key, value string }

func revision(n int, deleted bool) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(n))
	b = append(b, '_')
	b = binary.BigEndian.AppendUint64(b, 0)
	if deleted {
		b = append(b, 't')
	}
	return b
}

// write makes a database as etcd has it, with the hash of a snapshot if wanted.
func write(t *testing.T, history []change, hashed bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "snapshot.db")
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error { return fill(tx, history) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if hashed {
		appendHash(t, path)
	}
	return path
}

func fill(tx *bbolt.Tx, history []change) error {
	keys, err := tx.CreateBucket([]byte("key"))
	if err != nil {
		return err
	}
	meta, err := tx.CreateBucket([]byte("meta"))
	if err != nil {
		return err
	}
	if err := meta.Put([]byte("finishedCompactRev"), revision(1, false)); err != nil {
		return err
	}
	for i, c := range history {
		v, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte(c.key), Value: []byte(c.value), ModRevision: int64(i + 2), CreateRevision: 1, Version: 1, Lease: 7})
		if err != nil {
			return err
		}
		if err := keys.Put(revision(i+2, c.value == ""), v); err != nil {
			return err
		}
	}
	return nil
}

func appendHash(t *testing.T, path string) {
	t.Helper()
	data := read(t, path)
	h := sha256.Sum256(data)
	if err := os.WriteFile(path, append(data, h[:]...), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func scan(ctx context.Context, path string) (map[string]string, etcdstore.Info, error) {
	s, err := Open(ctx, path)
	if err != nil {
		return nil, etcdstore.Info{}, err
	}
	got := map[string]string{}
	var info etcdstore.Info
	err = s.Scan(ctx, func(i etcdstore.Info) (etcdstore.Visit, error) {
		info = i
		return func(kv etcdstore.KV) error {
			if _, twice := got[string(kv.Key)]; twice {
				return fmt.Errorf("key %q is visited twice", kv.Key)
			}
			got[string(kv.Key)] = fmt.Sprintf("%s@%d", kv.Value, kv.ModRevision)
			return nil
		}, nil
	})
	return got, info, err
}

func TestScan(t *testing.T) {
	for _, hashed := range []bool{true, false} {
		path := write(t, []change{{"/a", "1"}, {"/b", "1"}, {"/a", "2"}, {"/c", "1"}, {"/c", ""}, {"/b", ""}, {"/b", "3"}, {"/d", ""}}, hashed)
		before := read(t, path)
		got, info, err := scan(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if want := map[string]string{"/a": "2@4", "/b": "3@8"}; !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
		if info.Revision != 9 || info.Compacted != 1 || info.Verified != hashed || info.SHA256 != fmt.Sprintf("%x", sha256.Sum256(before)) || info.Bytes != int64(len(before)) {
			t.Errorf("info %+v", info)
		}
		if !bytes.Equal(read(t, path), before) {
			t.Error("reading changed the file")
		}
	}
}

// Against a plain replay of the history, over several passes too.
func TestScanAgainstReplay(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var history []change
	want := map[string]string{}
	for i := range 5000 {
		c := change{fmt.Sprintf("/registry/%d", r.IntN(700)), strings.Repeat("x", 1+r.IntN(40))}
		if r.IntN(4) == 0 {
			c.value = ""
			delete(want, c.key)
		} else {
			want[c.key] = fmt.Sprintf("%s@%d", c.value, i+2)
		}
		history = append(history, c)
	}
	path := write(t, history, true)
	got, _, err := scan(t.Context(), path)
	if err != nil || !maps.Equal(got, want) {
		t.Fatalf("%d keys, want %d: %v", len(got), len(want), err)
	}
	db, err := bbolt.Open(path, 0o400, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	shared := map[string]string{}
	err = db.View(func(tx *bbolt.Tx) error {
		r := (&File{path: path}).reader(tx, newMapping(db, tx.Size()))
		for pass := range 3 {
			if err := r.pass(t.Context(), pass, 3, len(history), func(kv etcdstore.KV) error {
				shared[string(kv.Key)] += fmt.Sprintf("%s@%d", kv.Value, kv.ModRevision)
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || !maps.Equal(shared, want) {
		t.Errorf("in three passes %d keys, want %d: %v", len(shared), len(want), err)
	}
}

func TestBadFiles(t *testing.T) {
	good := read(t, write(t, []change{{"/a", strings.Repeat("x", 1<<20)}, {"/b", "2"}, {"/c", "3"}}, true))
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	noise := make([]byte, 64<<10)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	foreign := filepath.Join(t.TempDir(), "foreign.db")
	db, err := bbolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("other")); return err }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	body := good[:len(good)-hashSize]
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"empty":            {nil, "empty"},
		"truncated":        {good[:len(good)-100], "truncated, or something else"},
		"cut at a page":    {body[:len(body)/2/4096*4096], "snapshot"},
		"half a page file": {body[:8192], "snapshot"},
		"one bit":          {flipped, "not the one at its end"},
		"encrypted":        {noise, "not a database of etcd"},
		"gzip":             {append([]byte("\x1f\x8b\x08"), noise[3:]...), "not a database of etcd"},
		"foreign":          {read(t, foreign), "not one of etcd"},
		"text":             {[]byte("hello"), "truncated, or something else"},
	} {
		path := filepath.Join(t.TempDir(), "f.db")
		if err := os.WriteFile(path, tt.data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := scan(t.Context(), path)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	for _, path := range []string{filepath.Join(t.TempDir(), "missing"), t.TempDir()} {
		var e *Error
		if _, _, err := scan(t.Context(), path); !errors.As(err, &e) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Damage that no hash covers ends in an error or in the right answer, never in a
// crash; a wrong one cannot be told without the hash, and the report says that.
func TestDamagedPagesDoNotCrash(t *testing.T) {
	var history []change
	for i := range 300 {
		history = append(history, change{fmt.Sprintf("/k%d", i), strings.Repeat("v", 200)})
	}
	good := read(t, write(t, history, false))
	r := rand.New(rand.NewPCG(3, 4))
	path := filepath.Join(t.TempDir(), "f.db")
	failed := 0
	for range 300 {
		bad := bytes.Clone(good)
		for range 1 + r.IntN(20) {
			bad[r.IntN(len(bad))] ^= byte(1 + r.IntN(255))
		}
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := scan(t.Context(), path); err != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Error("no damage was ever noticed")
	}
}

func TestCanceled(t *testing.T) {
	path := write(t, []change{{"/a", "1"}}, true)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestErrorOfTheVisitor(t *testing.T) {
	s, err := Open(t.Context(), write(t, []change{{"/a", "1"}}, true))
	if err != nil {
		t.Fatal(err)
	}
	mine := errors.New("mine")
	err = s.Scan(t.Context(), func(etcdstore.Info) (etcdstore.Visit, error) {
		return func(etcdstore.KV) error { return mine }, nil
	})
	if !errors.Is(err, mine) {
		t.Errorf("%v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a panic of the visitor is taken for damage of the file")
		}
	}()
	_ = s.Scan(t.Context(), func(etcdstore.Info) (etcdstore.Visit, error) {
		return func(etcdstore.KV) error { panic("mine") }, nil
	})
}
