package harden

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// refused are system calls that neither this process nor Go's runtime makes
// after its start, on every architecture; refusedHere adds those of this one.
// All others stay: a list of what is needed would have to be measured for each
// release of Go, and one call forgotten there stops a control plane.
var refused = []uint32{
	// Other programs.
	unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	// The memory and descriptors of other processes.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_PROCESS_MRELEASE, unix.SYS_KCMP, unix.SYS_PIDFD_GETFD,
	// Large parts of the kernel with a history of defects.
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_FANOTIFY_INIT, unix.SYS_VMSPLICE,
	// The kernel itself, and the machine.
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_SYSLOG, unix.SYS_ACCT,
	unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_VHANGUP, unix.SYS_LOOKUP_DCOOKIE,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_PERSONALITY,
	// Keyrings of the kernel.
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	// Other views of the file system, and other namespaces.
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_MOUNT_SETATTR, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
	unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_MKNODAT,
	// Another identity.
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS, unix.SYS_CAPSET,
}

const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// test is about the low 32 bits of one argument. That is all that the kernel
// looks at in the flags and numbers tested here.
type test struct {
	argument uint32
	cond     bpf.JumpTest
	value    uint32
}

// conditional are refused if every test holds.
var conditional = []struct {
	call  uint32
	tests []test
}{
	// Code comes from the program file alone: no page becomes code.
	{unix.SYS_MMAP, []test{{2, bpf.JumpBitsSet, unix.PROT_EXEC}}},
	{unix.SYS_MPROTECT, []test{{2, bpf.JumpBitsSet, unix.PROT_EXEC}}},
	{unix.SYS_PKEY_MPROTECT, []test{{2, bpf.JumpBitsSet, unix.PROT_EXEC}}},
	{unix.SYS_PRCTL, []test{{0, bpf.JumpEqual, unix.PR_SET_DUMPABLE}}},
	{unix.SYS_CLONE, []test{{0, bpf.JumpBitsSet, namespaces}}},
	{unix.SYS_SOCKET, []test{{0, bpf.JumpNotEqual, unix.AF_UNIX}, {0, bpf.JumpNotEqual, unix.AF_INET}, {0, bpf.JumpNotEqual, unix.AF_INET6}}},
	// Landlock does not see the ports of multipath TCP.
	{unix.SYS_SOCKET, []test{{2, bpf.JumpEqual, unix.IPPROTO_MPTCP}}},
}

// Offsets in struct seccomp_data (seccomp(2)); arguments are little-endian on
// the architectures that are known here.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
)

// x32 is the bit of calls by another ABI of x86-64; elsewhere no call has it.
const x32 = 0x40000000

// filter refuses what is listed above, and any call by the ABI of another
// architecture, whose numbers mean other calls. Each rule is a block of its own
// that jumps over itself alone and leaves the number of the call loaded, so
// that no rule depends on another.
func filter(m Mode) []bpf.Instruction {
	no := bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	older := bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
	if m == Log {
		no.Val, older.Val = unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_LOG
	}
	load := bpf.LoadAbsolute{Off: offsetCall, Size: 4}
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1}, no,
		load, bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32, SkipTrue: 1}, no,
		// ENOSYS has C libraries fall back to clone, whose flags can be looked at.
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1}, older,
	}
	calls := append(append([]uint32(nil), refused...), refusedHere...)
	for _, n := range calls {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: n, SkipTrue: 1}, no)
	}
	for _, c := range conditional {
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: c.call, SkipTrue: uint8(2*len(c.tests) + 1)})
		for i, t := range c.tests {
			rest := 2*(len(c.tests)-i-1) + 1
			p = append(p, bpf.LoadAbsolute{Off: offsetArgs + 8*t.argument, Size: 4}, bpf.JumpIf{Cond: t.cond, Val: t.value, SkipFalse: uint8(rest)})
		}
		p = append(p, no, load)
	}
	return append(p, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
}

func syscalls(m Mode) Measure {
	switch {
	case m == Off:
		return Measure{Name: MeasureSyscalls, State: Loosened}
	case auditArch == 0:
		return Measure{MeasureSyscalls, Unsupported, "system calls are not known for " + runtime.GOARCH}
	}
	err := install(filter(m))
	switch {
	case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL):
		return Measure{MeasureSyscalls, Unsupported, "the kernel has no seccomp filters"}
	case err != nil:
		return failed(MeasureSyscalls, err)
	case m == Log:
		return Measure{MeasureSyscalls, Logged, "what would be refused is in the kernel's audit log"}
	}
	return Measure{Name: MeasureSyscalls, State: Enforced}
}

// install holds every thread of the process (TSYNC), those there are and those
// to come.
func install(program []bpf.Instruction) error {
	raw, err := bpf.Assemble(program)
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	runtime.LockOSThread() // no_new_privs belongs to the thread that asks
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	return nil
}
