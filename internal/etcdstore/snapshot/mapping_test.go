package snapshot

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/test/lack"
)

// fileMemory is what mapped files count for in this process.
func fileMemory(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		lack.Skip(t, "no /proc to look at: %v", err)
	}
	kib := 0
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	if _, err := fmt.Sscanf(rest, "%d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// A file may be larger than the memory that a process may have.
func TestMappedPagesAreLetGo(t *testing.T) {
	const pairs, size, window = 512, 32 << 10, 1 << 20
	var history []change
	for i := range pairs {
		history = append(history, change{fmt.Sprintf("/registry/%d", i), strings.Repeat("x", size)})
	}
	path := write(t, history, true)
	db, err := bbolt.Open(path, 0o400, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	before, most, n := fileMemory(t), 0, 0
	err = db.View(func(tx *bbolt.Tx) error {
		r := (&File{path: path}).reader(tx, newMapping(db, tx.Size()))
		r.pages.size, r.pages.window = uintptr(tx.Size()), window
		return r.pass(t.Context(), 0, 1, pairs, func(kv etcdstore.KV) error {
			if strings.Count(string(kv.Value), "x") != size {
				t.Fatalf("%s has not its value", kv.Key)
			}
			n++
			most = max(most, fileMemory(t)-before)
			return nil
		})
	})
	if err != nil || n != pairs {
		t.Fatalf("%d pairs of %d: %v", n, pairs, err)
	}
	if most > pairs*size/2 { // parts of this program are in it too, and the kernel counts loosely
		t.Errorf("of %d bytes up to %d were held, with a window of %d", pairs*size, most, window)
	}
}
