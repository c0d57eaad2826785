package harden

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

var before = sync.OnceValue(func() (l unix.Rlimit) {
	_ = unix.Getrlimit(unix.RLIMIT_CORE, &l) // for Off alone
	return l
})

// NoDump keeps this process from ever leaving a core file, and other processes
// of the same user from reading its memory (prctl(2), PR_SET_DUMPABLE). It is
// for the first moment of a process; Apply keeps or loosens it.
func NoDump() error {
	hard := before().Max // as it was: Apply with Off has to get it back
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Max: hard}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid reading of memory: %w", err)
	}
	return nil
}

func dump(m Mode) Measure {
	if m == Off {
		limit := before()
		if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
			return failed(MeasureDump, err)
		}
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return failed(MeasureDump, err)
		}
		return Measure{Name: MeasureDump, State: Loosened}
	}
	if err := NoDump(); err != nil {
		return failed(MeasureDump, err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return failed(MeasureDump, err)
	}
	return Measure{Name: MeasureDump, State: Enforced}
}

// privileges keeps any program started from here from gaining some by its file
// (no_new_privs, prctl(2)). The bit belongs to a thread: it is set on all.
func privileges(m Mode) Measure {
	if m == Off {
		return Measure{Name: MeasurePrivileges, State: Loosened}
	}
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return failed(MeasurePrivileges, errno)
	}
	return Measure{Name: MeasurePrivileges, State: Enforced}
}
