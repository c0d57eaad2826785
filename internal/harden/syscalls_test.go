package harden

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	pass    = unix.SECCOMP_RET_ALLOW
	refuse  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	unknown = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// judge runs the filter on one call. The interpreter loads in network order, so
// the numbers are laid out so.
func judge(t *testing.T, vm *bpf.VM, arch, call uint32, args ...uint32) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offsetCall:], call)
	binary.BigEndian.PutUint32(data[offsetArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offsetArgs+8*i:], a)
	}
	verdict, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(verdict)
}

func machine(t *testing.T, m Mode) *bpf.VM {
	t.Helper()
	vm, err := bpf.NewVM(filter(m))
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// Every call there is, with arguments that conditions are about, goes where the
// lists send it: no rule spills into another.
func TestFilterOfEveryCall(t *testing.T) {
	vm := machine(t, Enforce)
	always := slices.Concat(refused, refusedHere)
	for call := range uint32(600) {
		for _, arg := range []uint32{0, 1, 2, 3, 4, 7, 9, 10, 16, 262, 0x5100, 0x50f00, unix.CLONE_NEWUSER, ^uint32(0)} {
			for position := range 6 {
				args := make([]uint32, 6)
				args[0] = unix.AF_INET // a socket that may be
				args[position] = arg
				want := uint32(pass)
				if slices.Contains(always, call) || expected(call, args) {
					want = refuse
				}
				if call == unix.SYS_CLONE3 {
					want = unknown
				}
				if got := judge(t, vm, auditArch, call, args...); got != want {
					t.Fatalf("call %d with %#x: verdict %#x, want %#x", call, args, got, want)
				}
			}
		}
	}
}

// expected says what the conditions mean, in other words than the filter.
func expected(call uint32, a []uint32) bool {
	switch call {
	case unix.SYS_MMAP, unix.SYS_MPROTECT, unix.SYS_PKEY_MPROTECT:
		return a[2]&unix.PROT_EXEC != 0
	case unix.SYS_PRCTL:
		return a[0] == unix.PR_SET_DUMPABLE
	case unix.SYS_CLONE:
		return a[0]&0x7e020000 != 0
	case unix.SYS_SOCKET:
		return a[0] != unix.AF_UNIX && a[0] != unix.AF_INET && a[0] != unix.AF_INET6 || a[2] == 262
	}
	return false
}

// The numbers of another architecture mean other calls: none of them passes.
func TestFilterOfAnotherABI(t *testing.T) {
	vm := machine(t, Enforce)
	for name, tc := range map[string]struct{ arch, call uint32 }{
		"i386 execve": {unix.AUDIT_ARCH_I386, 11}, "i386 getpid": {unix.AUDIT_ARCH_I386, 20},
		"arm": {unix.AUDIT_ARCH_ARM, 1}, "x32 getpid": {auditArch, x32 | unix.SYS_GETPID}, "highest": {auditArch, ^uint32(0)},
	} {
		if got := judge(t, vm, tc.arch, tc.call); got != refuse {
			t.Errorf("%s: verdict %#x, want a refusal", name, got)
		}
	}
}

func TestFilterModes(t *testing.T) {
	log := machine(t, Log)
	for name, tc := range map[string]struct {
		vm   *bpf.VM
		call uint32
		args []uint32
		want uint32
	}{
		"log ptrace":       {log, unix.SYS_PTRACE, nil, unix.SECCOMP_RET_LOG},
		"log mmap of code": {log, unix.SYS_MMAP, []uint32{0, 0, unix.PROT_EXEC}, unix.SECCOMP_RET_LOG},
		"log clone3":       {log, unix.SYS_CLONE3, nil, unix.SECCOMP_RET_LOG},
		"log read":         {log, unix.SYS_READ, nil, pass},
	} {
		if got := judge(t, tc.vm, auditArch, tc.call, tc.args...); got != tc.want {
			t.Errorf("%s: verdict %#x, want %#x", name, got, tc.want)
		}
	}
}
