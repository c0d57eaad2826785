package etcdfill

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// Contents are what a snapshot must be found to hold.
type Contents struct {
	Objects  int64
	KeyIDs   map[string]int64 // objects under each
	Bytes    int64            // of their keys and values
	Revision int64
	FileSize int64
}

// The buckets of etcd 3.6 and later (server/v3 storage/schema).
var buckets = []string{"alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta"}

// Snapshot writes what `etcdctl snapshot save` would, with so many objects. Every
// tenth was written before, and for every twentieth another one was deleted.
func Snapshot(path string, objects int) (Contents, error) {
	w, err := create(path)
	if err != nil {
		return Contents{}, err
	}
	err = errors.Join(w.fill(objects), w.flush(), w.db.Close())
	if err == nil {
		w.contents.FileSize, err = appendHash(path)
	}
	w.contents.Revision = w.revision
	return w.contents, err
}

type writer struct {
	db       *bbolt.DB
	revision int64
	batch    []pair
	size     int
	contents Contents
}

type pair struct{ k, v []byte }

// batchBytes is about what etcd commits at a time when it is busy.
const batchBytes = 8 << 20

func create(path string) (*writer, error) {
	// As etcd opens it (server/v3 storage/backend/config_linux.go), but for fsync.
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, err
	}
	w := &writer{db: db, revision: 1, contents: Contents{KeyIDs: map[string]int64{}}}
	return w, db.Update(func(tx *bbolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		meta := tx.Bucket([]byte("meta"))
		return errors.Join(
			meta.Put([]byte("storageVersion"), []byte("3.7.0")),
			meta.Put([]byte("consistent_index"), binary.BigEndian.AppendUint64(nil, 1)),
			meta.Put([]byte("term"), binary.BigEndian.AppendUint64(nil, 1)),
			meta.Put([]byte("scheduledCompactRev"), revisionKey(1)),
			meta.Put([]byte("finishedCompactRev"), revisionKey(1)))
	})
}

func revisionKey(n int64) []byte {
	return binary.BigEndian.AppendUint64(append(binary.BigEndian.AppendUint64(nil, uint64(n)), '_'), 0)
}

func (w *writer) fill(objects int) error {
	rnd := rand.NewChaCha8([32]byte{'e', 't', 'c', 'd'})
	all, err := moulds(rnd)
	if err != nil {
		return err
	}
	for i := range objects {
		m := &all[i%len(all)]
		key, value, version := m.key(i), m.value(rnd), int64(1)
		if i%10 == 3 {
			err = w.put(key, value, version)
			version++
		}
		if i%20 == 7 {
			gone := append(m.key(i), "-gone"...)
			err = errors.Join(err, w.put(gone, value, 1), w.remove(gone))
		}
		if err = errors.Join(err, w.put(key, value, version)); err != nil {
			return err
		}
		w.contents.Objects++
		w.contents.Bytes += int64(len(key) + len(value))
		if m.keyID != "" {
			w.contents.KeyIDs[m.keyID]++
		}
	}
	return nil
}

func (w *writer) put(key, value []byte, version int64) error {
	w.revision++
	return w.add(revisionKey(w.revision), &mvccpb.KeyValue{Key: key, Value: value, CreateRevision: w.revision - version + 1, ModRevision: w.revision, Version: version})
}

func (w *writer) remove(key []byte) error {
	w.revision++
	return w.add(append(revisionKey(w.revision), 't'), &mvccpb.KeyValue{Key: key})
}

func (w *writer) add(k []byte, kv *mvccpb.KeyValue) error {
	v, err := proto.Marshal(kv)
	if err != nil {
		return err
	}
	w.batch = append(w.batch, pair{k, v})
	if w.size += len(v); w.size < batchBytes {
		return nil
	}
	return w.flush()
}

func (w *writer) flush() error {
	err := w.db.Update(func(tx *bbolt.Tx) error {
		keys := tx.Bucket([]byte("key"))
		keys.FillPercent = 0.9 // as etcd: revisions only grow
		for _, p := range w.batch {
			if err := keys.Put(p.k, p.v); err != nil {
				return err
			}
		}
		return nil
	})
	w.batch, w.size = w.batch[:0], 0
	return err
}

func appendHash(path string) (size int64, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if size, err = io.Copy(h, bufio.NewReaderSize(f, 1<<20)); err != nil {
		return 0, err
	}
	n, err := f.Write(h.Sum(nil))
	return size + int64(n), err
}
