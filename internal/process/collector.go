package process

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// The collector runs when the heap has grown by a share of what lives. For the two or
// three megabytes of a plugin at rest the runtime's own share costs megabytes; in a cold
// start, when much lives, half of it keeps memory bounded, which is locked and on a
// control-plane node. A memory limit cannot do it: where more lives than it allows, the
// collector never stops.
const (
	usualShare = 50
	largeShare = 100
	smallHeap  = 4 << 20 // bytes that live
)

// heartbeat is garbage by the next collection, and so tells of each one.
type heartbeat struct{ _ *byte }

// tuneCollector chooses the share after every collection, for ever.
func tuneCollector() {
	share := largeShare
	debug.SetGCPercent(share)
	var beat func(*heartbeat)
	beat = func(*heartbeat) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(live)
		want := usualShare
		if live[0].Value.Kind() == metrics.KindUint64 && live[0].Value.Uint64() < smallHeap {
			want = largeShare
		}
		if want != share {
			share = want
			debug.SetGCPercent(share)
		}
		runtime.SetFinalizer(new(heartbeat), beat)
	}
	runtime.SetFinalizer(new(heartbeat), beat)
}
