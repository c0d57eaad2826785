//go:build e2e

package chaos

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"kms-plugin.io/test/fakekms"
)

// fault is one way in which the surroundings of the first node, or of all, break.
type fault struct {
	name     string
	regions  int           // of the key it needs, 0 is one
	mounts   bool          // needs a mount namespace
	cold     bool          // a plugin that starts meanwhile opens nothing
	deaf     bool          // a plugin that starts meanwhile takes no further connection
	slow     bool          // a plugin that starts meanwhile answers well only when the KMS has wrapped for it
	says     string        // what the plugin must say of it
	patience time.Duration // how long that may take, if longer than usual
	inject   func(x *cell)
	heal     func(x *cell)
	stopped  func(x *cell) // while the first plugin is stopped
	started  func(x *cell) // when it has started again
}

// cloudy is a fault of the cloud, given by what it answers.
func cloudy(name string, f fakekms.Fault) fault {
	return fault{name: name, cold: true, says: "degraded",
		inject: func(x *cell) { x.s.cloud.SetFault(f) }, heal: func(x *cell) { x.s.cloud.ClearFaults() }}
}

// faults are the lines of the matrix.
var faults = []fault{
	{name: "KMS refuses connections", cold: true, says: "degraded",
		inject: func(x *cell) { x.s.cloud.Refuse() }, heal: func(x *cell) { x.s.cloud.Listen() }},
	{name: "KMS is a black hole", cold: true, says: "degraded",
		inject: func(x *cell) { x.s.cloud.Blackhole() }, heal: func(x *cell) { x.s.cloud.Unblackhole() }},
	cloudy("KMS resets connections, nothing done", fakekms.Fault{Kind: fakekms.Reset}),
	cloudy("KMS does it, then resets", fakekms.Fault{Kind: fakekms.Reset, AfterEffect: true}),
	{name: "50 % throttled", inject: func(x *cell) { x.s.cloud.SetFault(fakekms.Fault{Kind: fakekms.Throttle, Probability: 0.5}) },
		heal: func(x *cell) { x.s.cloud.ClearFaults() }},
	cloudy("100 % throttled", fakekms.Fault{Kind: fakekms.Throttle}),
	cloudy("5xx, nothing done", fakekms.Fault{Kind: fakekms.InternalError}),
	cloudy("5xx, but done", fakekms.Fault{Kind: fakekms.InternalError, AfterEffect: true}),
	cloudy("10 s latency", fakekms.Fault{Kind: fakekms.Latency, Latency: 10 * time.Second}),
	cloudy("done, never answered", fakekms.Fault{Kind: fakekms.Hang, AfterEffect: true}),
	{name: "DNS gone", mounts: true, cold: true, says: "degraded", inject: nameless, heal: func(x *cell) { x.must(names.back()) }},
	cloudy("credentials expired", fakekms.Fault{Kind: fakekms.ExpiredToken}),
	{name: "clock 10 min behind", inject: func(x *cell) { x.s.cloud.SetClock(10 * time.Minute) }, heal: func(x *cell) { x.s.cloud.SetClock(0) }},
	{name: "clock 10 min ahead", inject: func(x *cell) { x.s.cloud.SetClock(-10 * time.Minute) }, heal: func(x *cell) { x.s.cloud.SetClock(0) }},
	{name: "state disk full", mounts: true, says: "state_write_failing", patience: 35 * time.Second,
		inject: func(x *cell) { x.fill("state") }, heal: func(x *cell) { x.empty("state") }},
	{name: "state file gone", slow: true, inject: func(x *cell) { x.must(x.loseState()) }, stopped: func(x *cell) { x.must(x.loseState()) }, heal: restoreState},
	{name: "state file damaged", slow: true, inject: func(x *cell) { x.must(x.damageState()) }, stopped: func(x *cell) { x.must(x.damageState()) }, heal: restoreState},
	{name: "audit disk full", mounts: true, says: "audit_failures_total", inject: func(x *cell) { x.fill("audit") }, heal: func(x *cell) { x.empty("audit") }},
	{name: "fd limit reached", deaf: true, inject: func(x *cell) { x.must(x.limitFiles(true)) }, started: func(x *cell) { x.must(x.limitFiles(true)) },
		heal: func(x *cell) { x.must(x.limitFiles(false)) }},
	{name: "first region refuses", regions: 2, says: "outage",
		inject: func(x *cell) { x.s.away[0].Refuse() }, heal: func(x *cell) { x.s.away[0].Listen() }},
	{name: "first region is a black hole", regions: 2, says: "outage",
		inject: func(x *cell) { x.s.away[0].Blackhole() }, heal: func(x *cell) { x.s.away[0].Unblackhole() }},
}

// nameless takes the name of the KMS away, waits until the plugins read the file of
// names again, which they keep for five seconds, and cuts the connections made before.
func nameless(x *cell) {
	x.must(names.gone())
	time.Sleep(5100 * time.Millisecond)
	x.s.cloud.Refuse()
	x.s.cloud.Listen()
}

func (x *cell) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

// fill fills a disk of the first node to the last byte.
func (x *cell) fill(disk string) {
	x.t.Helper()
	f, err := os.Create(x.s.home(0, disk, "ballast"))
	x.must(err)
	defer f.Close()
	for size := 64 << 10; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	if _, err := f.Write([]byte{0}); !errors.Is(err, syscall.ENOSPC) {
		x.t.Fatalf("the disk %s takes more: %v", disk, err)
	}
}

func (x *cell) empty(disk string) { x.must(os.Remove(x.s.home(0, disk, "ballast"))) }

func (x *cell) statePath() string { return x.s.home(0, "state", "state.json") }

func (x *cell) loseState() error {
	err := os.Remove(x.statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (x *cell) damageState() error {
	data, err := os.ReadFile(x.statePath())
	if err != nil {
		return err
	}
	return os.WriteFile(x.statePath(), data[:len(data)/2], 0o600)
}

// restoreState: a plugin that still runs writes the file again within half a minute;
// this does not wait for it. One that was restarted has written a new one.
func restoreState(x *cell) {
	if !x.restarted {
		x.must(os.WriteFile(x.statePath(), x.state, 0o600))
	}
}

// limitFiles allows the first plugin the files it has open, and no more.
func (x *cell) limitFiles(on bool) error {
	pid := x.s.p[0].PID()
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		return err
	}
	open, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		return err
	}
	limit.Cur = limit.Max
	if on {
		limit.Cur = uint64(len(open))
	}
	return unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil)
}
