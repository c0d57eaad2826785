package harden

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// onFault locks a page when it is first touched: what Go only reserves costs
// nothing (mlock2(2), Linux 4.4).
const onFault = 4 // MCL_ONFAULT

// memory keeps every page of this process out of swap, also those to come. Go's
// heap, Tink's key objects and the buffers of gRPC and TLS cannot be told apart
// from the rest, so it is all or nothing. Under a limit nothing is locked: with
// one, the first growth of the heap beyond it would end the process.
func memory(m Mode) Measure {
	if m == Off {
		return Measure{Name: MeasureMemory, State: Loosened}
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return failed(MeasureMemory, err)
	}
	if limit.Cur != unix.RLIM_INFINITY && !mayLock() {
		return Measure{MeasureMemory, Unsupported, fmt.Sprintf("only %d KiB may be locked: give the service LimitMEMLOCK=infinity, or CAP_IPC_LOCK", limit.Cur>>10)}
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | onFault); err != nil {
		return failed(MeasureMemory, err)
	}
	return Measure{Name: MeasureMemory, State: Enforced}
}

func mayLock() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0
}
