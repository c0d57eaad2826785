package localkek_test

import (
	"bytes"
	"crypto/fips140"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kms-plugin.io/pkg/keys/localkek"
	"kms-plugin.io/test/lack"
)

// scanner looks for bytes in this process's own memory. What it looks for, and
// the copy of the memory in which it looks, is shared memory, which it leaves out.
type scanner struct {
	t      *testing.T
	shared []byte
	used   int
}

func newScanner(t *testing.T) *scanner {
	t.Helper()
	if fips140.Enforced() {
		t.Skip("the scan looks for the keys of XAES-256-GCM")
	}
	m, err := unix.Mmap(-1, 0, 1<<30, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		lack.Skip(t, "%v", err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	return &scanner{t: t, shared: m}
}

// keep moves bytes to where the scan does not look.
func (s *scanner) keep(b []byte) []byte {
	to := s.shared[s.used : s.used+len(b) : s.used+len(b)]
	s.used += len(b)
	copy(to, b)
	clear(b)
	return to
}

// memory is a copy of all that is private and can be written.
func (s *scanner) memory() []byte {
	s.t.Helper()
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		lack.Skip(s.t, "%v", err)
	}
	defer mem.Close()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		lack.Skip(s.t, "%v", err)
	}
	out := s.shared[1<<20:]
	end := 0
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode != "rw-p" {
			continue
		}
		if int64(len(out)-end) < to-from {
			lack.Skip(s.t, "this process is too large to be copied")
		}
		n, _ := mem.ReadAt(out[end:end+int(to-from)], from) // what cannot be read is not mapped any more
		end += n
	}
	return out[:end]
}

// sealingKey is derived here only after the memory was copied: what that leaves
// behind must not be found.
func sealingKey(t *testing.T, secret []byte) []byte {
	t.Helper()
	raw, err := hkdf.Key(sha256.New, secret, nil, "kms-plugin.io/local-kek/seal/v1", 32)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// What stays in memory of local KEKs that were used and dropped. Without
// runtime/secret the number is what the collector and its reuse of memory make
// of it; with it, none may be left.
func TestMemoryAfterUse(t *testing.T) {
	const rounds = 20
	s := newScanner(t)
	var kept [][]byte
	for range rounds {
		kept = append(kept, use(t, s))
	}
	for range 3 {
		runtime.GC()
		debug.FreeOSMemory()
	}
	memory, found := s.memory(), 0
	for _, secret := range kept {
		if bytes.Contains(memory, sealingKey(t, secret)) {
			found++
		}
	}
	t.Logf("of %d local KEKs that were used and dropped, the sealing key of %d is still in memory", rounds, found)
	if erasing && found > 0 {
		t.Errorf("%d sealing keys are in memory in a build that erases", found)
	}
}

// use makes a local KEK, uses it and drops it. It returns its bytes.
func use(t *testing.T, s *scanner) []byte {
	k, secret, err := localkek.Generate(localkek.XAES)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := k.Seal(make([]byte, 32), nil)
	if err == nil {
		_, err = k.Open(sealed, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.keep(secret)
}

// While a local KEK is in use its sealing key is in memory: else the test above
// would find nothing for the wrong reason.
func TestMemoryInUse(t *testing.T) {
	s := newScanner(t)
	k, secret, err := localkek.Generate(localkek.XAES)
	if err != nil {
		t.Fatal(err)
	}
	kept := s.keep(secret)
	memory := s.memory()
	n := bytes.Count(memory, sealingKey(t, kept))
	t.Logf("a local KEK in use: its sealing key is in memory %d times", n)
	if n == 0 {
		t.Error("the scan does not find a key that is in use")
	}
	runtime.KeepAlive(k)
}
