package snapshot

import (
	"unsafe"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// mapping lets go of the pages that were read. bbolt maps the whole file, and
// what was touched of it counts as memory of this process: without this a scan
// would end with all of the file. It stays in the kernel's cache, and a page that
// is needed again comes back from there or from the file.
type mapping struct {
	start, size uintptr
	block       uintptr // where the last key was
	touched     int     // bytes since pages were let go, at most
	window      int     // bytes that may be held
}

const (
	mapWindow = 32 << 20
	// mapBlock is what one page fault brings in of a cached file (fault_around_bytes).
	mapBlock = 64 << 10
)

func newMapping(db *bbolt.DB, fileSize int64) *mapping {
	return &mapping{start: db.Info().Data, size: uintptr(fileSize), window: mapWindow}
}

// read is told of each pair, and of nothing else: the pages above them are few.
func (m *mapping) read(k, v []byte) {
	if b := uintptr(unsafe.Pointer(unsafe.SliceData(k))) / mapBlock; b != m.block {
		m.block = b
		m.touched += mapBlock
	}
	if m.touched += len(v); m.touched < m.window {
		return
	}
	m.touched = 0
	// It is an advice: if it is refused nothing is wrong but memory.
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.size, unix.MADV_DONTNEED)
}

// faulted tells of a panic that it is about a page of the file which is not there any
// more.
func (m *mapping) faulted(p any) bool {
	f, ok := p.(interface{ Addr() uintptr }) // runtime/debug.SetPanicOnFault
	return ok && m != nil && f.Addr()-m.start < m.size
}
