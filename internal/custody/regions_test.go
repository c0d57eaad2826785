package custody_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/custody"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/regions"
)

// replica is the same key and material in another region, with a state of its own.
func (c *cloud) replica() *cloud {
	return &cloud{identity: c.identity, mu: c.mu, aeads: c.aeads, material: c.material, fail: map[keys.Op]error{}, calls: map[keys.Op]int{}}
}

// absent makes it answer as where there is no such key.
func (c *cloud) absent() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, op := range both {
		c.fail[op] = &keys.Error{Class: keys.ClassKeyState, Op: op, Key: c.identity, Code: "Faked", Absent: true}
	}
}

func (c *cloud) use(material string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.material = material
}

func (c *cloud) silent(hang bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hang = hang
}

var both = []keys.Op{keys.OpWrap, keys.OpUnwrap}

func several(t *testing.T, q keys.Quorum, in ...*cloud) keys.Entry {
	t.Helper()
	var rs []keys.Region
	for i, c := range in {
		rs = append(rs, keys.Region{Name: string(rune('a' + i)), KEK: c})
	}
	k, err := regions.New(q, rs...)
	if err != nil {
		t.Fatal(err)
	}
	return keys.Entry{Name: "prod", Role: keys.RoleWrite, Generation: 1, KEK: k, RegionQuorum: q}
}

func regionsOf(i *instance) []custody.RegionReport { return i.Report().Keys[0].Regions }

func TestRegionAwayAndBack(t *testing.T) {
	for name, away := range map[string]func(c *cloud, yes bool){
		"outage": func(c *cloud, yes bool) {
			c.set(keys.ClassNone)
			if yes {
				c.set(keys.ClassOutage, both...)
			}
		},
		"black hole": func(c *cloud, yes bool) { c.silent(yes) },
	} {
		bubble(name, func(t *testing.T) {
			eu := newCloud("mrk")
			us, dir := eu.replica(), t.TempDir()
			i := start(t, ring(t, several(t, "", eu, us)), dir)
			id, s := mustKeyID(t, i), mustSeal(t, i)
			away(eu, true)
			fresh := start(t, ring(t, several(t, "", eu, us)), "") // cold, in the outage
			sleep(6 * time.Second)
			if got := mustKeyID(t, fresh); got != id {
				t.Errorf("key_id by the replica alone is %q, want %q", got, id)
			}
			mustOpen(t, fresh, s)
			mustOpen(t, i, mustSeal(t, fresh))
			i.stop()
			again := start(t, ring(t, several(t, "", eu, us)), dir) // with its state
			sleep(6 * time.Second)
			mustOpen(t, again, s)
			if got := mustSeal(t, again).KeyID; got != id {
				t.Errorf("key_id after a restart in the outage is %q, want %q", got, id)
			}
			soon := tuning
			soon.Limits.MaxOutage, soon.Limits.MaxOutageDecrypt = 10*time.Minute, 20*time.Minute
			if err := again.Replace(ring(t, several(t, "", eu, us)), soon); err != nil {
				t.Fatal(err)
			}
			sleep(time.Hour) // longer than maxOutage: the key itself answers
			mustOpen(t, again, mustSeal(t, again))
			r := regionsOf(again)
			if r[0].InUse || !r[1].InUse || r[0].Unwrap != "outage" || r[1].Unwrap != "ok" || r[1].Wrap != "ok" {
				t.Errorf("regions %+v", r)
			}
			away(eu, false)
			sleep(5 * time.Minute)
			if r := regionsOf(again); !r[0].InUse || r[0].Wrap != "ok" {
				t.Errorf("not back: %+v", r)
			}
			if got := mustKeyID(t, again); got != id {
				t.Errorf("key_id after the outage is %q, want %q", got, id)
			}
			if !again.w.saw("region", slog.LevelWarn) || !again.w.saw("region", slog.LevelInfo) {
				t.Error("no event tells of the region")
			}
		})(t)
	}
}

// Class × operation × region: what closes the key, and what does not.
func TestRegionCells(t *testing.T) {
	state, auth, cred, outage := keys.ClassKeyState, keys.ClassAuthorization, keys.ClassCredential, keys.ClassOutage
	for name, tc := range map[string]struct {
		quorum keys.Quorum
		spoil  func(eu, us *cloud)
		within time.Duration // closes sealing, 0 never
		class  keys.Class
		opens  bool // what is in memory, once closed
	}{
		"one region disabled":                   {"", func(eu, _ *cloud) { eu.set(state, both...) }, 3 * time.Minute, state, false},
		"the replica disabled":                  {"", func(_, us *cloud) { us.set(state, both...) }, 3 * time.Minute, state, false},
		"the replica disabled, all":             {keys.QuorumAll, func(_, us *cloud) { us.set(state, both...) }, 0, state, true},
		"the first disabled, all":               {keys.QuorumAll, func(eu, _ *cloud) { eu.set(state, both...) }, 0, state, true},
		"both disabled, all":                    {keys.QuorumAll, func(eu, us *cloud) { eu.set(state, both...); us.set(state, both...) }, 3 * time.Minute, state, false},
		"disabled and away, all":                {keys.QuorumAll, func(eu, us *cloud) { eu.set(state, both...); us.set(outage, both...) }, 3 * time.Minute, state, false},
		"an endpoint policy denies on one path": {"", func(eu, _ *cloud) { eu.set(auth, both...) }, 0, auth, true},
		"denied on both paths":                  {"", func(eu, us *cloud) { eu.set(auth, both...); us.set(auth, both...) }, 13 * time.Minute, auth, false},
		"denied here, away there":               {"", func(eu, us *cloud) { eu.set(auth, both...); us.set(outage, both...) }, 13 * time.Minute, auth, false},
		"only Encrypt denied here":              {"", func(eu, _ *cloud) { eu.set(auth, keys.OpWrap) }, 0, auth, true},
		"only Encrypt denied in both":           {"", func(eu, us *cloud) { eu.set(auth, keys.OpWrap); us.set(auth, keys.OpWrap) }, 13 * time.Minute, auth, true},
		"only Decrypt denied here":              {"", func(eu, _ *cloud) { eu.set(auth, keys.OpUnwrap) }, 0, auth, true},
		"only Decrypt denied in both":           {"", func(eu, us *cloud) { eu.set(auth, keys.OpUnwrap); us.set(auth, keys.OpUnwrap) }, 13 * time.Minute, auth, false},
		"Encrypt denied here, Decrypt there":    {"", func(eu, us *cloud) { eu.set(auth, keys.OpWrap); us.set(auth, keys.OpUnwrap) }, 0, auth, true},
		"a role withdrawn":                      {"", func(eu, us *cloud) { eu.set(cred, both...); us.set(cred, both...) }, 23 * time.Minute, cred, false},
		"a credential refused in one region":    {"", func(_, us *cloud) { us.set(cred, both...) }, 0, cred, true},
		"egress blocked":                        {"", func(eu, us *cloud) { eu.set(outage, both...); us.silent(true) }, 31 * time.Minute, outage, true},
		"the replica deleted":                   {"", func(_, us *cloud) { us.absent() }, 3 * time.Minute, state, false},
		"the replica deleted, all":              {keys.QuorumAll, func(_, us *cloud) { us.absent() }, 0, state, true},
	} {
		bubble(name, func(t *testing.T) {
			eu := newCloud("mrk")
			us := eu.replica()
			i := start(t, ring(t, several(t, tc.quorum, eu, us)), "")
			soon := tuning
			soon.Limits.Credential, soon.Limits.MaxOutage, soon.Limits.MaxOutageDecrypt = 20*time.Minute, 30*time.Minute, time.Hour
			if err := i.Replace(ring(t, several(t, tc.quorum, eu, us)), soon); err != nil {
				t.Fatal(err)
			}
			s := mustSeal(t, i)
			sleep(61 * time.Second)
			tc.spoil(eu, us)
			if tc.within == 0 {
				sleep(35 * time.Minute)
				mustOpen(t, i, mustSeal(t, i))
				fresh := start(t, ring(t, several(t, tc.quorum, eu, us)), "")
				sleep(20 * time.Second)
				mustOpen(t, fresh, s) // not only from memory
				return
			}
			sleep(tc.within / 2)
			if tc.within > 3*time.Minute { // nothing before its time
				mustOpen(t, i, mustSeal(t, i))
			}
			sleep(tc.within - tc.within/2)
			var shut *keys.ShutError
			if _, err := i.KeyID(); !errors.As(err, &shut) || shut.Class != tc.class {
				t.Fatalf("KeyID after %s = %v, want ShutError of class %v", tc.within, err, tc.class)
			}
			if err := open(t.Context(), i, s); (err == nil) != tc.opens {
				t.Errorf("Open = %v, want opens=%v", err, tc.opens)
			}
			eu.set(keys.ClassNone)
			us.set(keys.ClassNone)
			us.silent(false)
			sleep(15 * time.Second)
			mustOpen(t, i, mustSeal(t, i))
		})(t)
	}
}

// A mis-click in IAM, in both regions, undone within its ten minutes.
func TestShortMisclick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newCloud("mrk")
		us := eu.replica()
		i := start(t, ring(t, several(t, "", eu, us)), "")
		for range 3 {
			eu.set(keys.ClassAuthorization, both...)
			us.set(keys.ClassAuthorization, both...)
			sleep(9 * time.Minute)
			mustOpen(t, i, mustSeal(t, i))
			eu.set(keys.ClassNone)
			us.set(keys.ClassNone)
			sleep(2 * time.Minute)
		}
		if !i.w.saw("degraded", slog.LevelError) {
			t.Error("no alarm at once")
		}
	})
}

// A replica added by a typo must not close a key that serves.
func TestReplicaThatNeverWasThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newCloud("mrk")
		us := eu.replica()
		us.absent()
		i := start(t, ring(t, several(t, "", eu, us)), "")
		sleep(time.Hour)
		mustOpen(t, i, mustSeal(t, i))
		if r := regionsOf(i); r[1].Unwrap != "key-state" || !r[0].InUse {
			t.Errorf("regions %+v", r)
		}
		if !i.w.saw("region", slog.LevelError) {
			t.Error("nothing tells of it")
		}
	})
}

// New material counts only when every region that wraps uses it.
func TestRotationIsSynchronised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu := newCloud("mrk")
		us := eu.replica()
		i := start(t, ring(t, several(t, "", eu, us)), "")
		first, s := mustKeyID(t, i), mustSeal(t, i)
		eu.rotate("m2")
		sleep(time.Hour)
		if got := mustKeyID(t, i); got != first {
			t.Fatalf("key_id changed while a region still wraps with the old material")
		}
		us.use("m2")
		sleep(10 * time.Minute)
		second := mustKeyID(t, i)
		if second == first {
			t.Fatal("key_id did not change")
		}
		mustOpen(t, i, s)
		// With the first region away the other one's word is enough, and goes nowhere back.
		eu.set(keys.ClassOutage, both...)
		us.use("m1")
		sleep(time.Hour)
		if got := mustKeyID(t, i); got != second {
			t.Errorf("key_id went back to %q", got)
		}
	})
}

// A denied read key leaves the write key alone, and is never probed by a wrap, in
// any region.
func TestReadKeyOfSeveralRegions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newCloud("mrk")
		twin, now := old.replica(), newCloud("now")
		e := several(t, "", old, twin)
		was := start(t, ring(t, e), "")
		s := mustSeal(t, was)
		was.stop()
		e.Name, e.Role = "old", keys.RoleRetired
		i := start(t, ring(t, write("prod", now), e), "")
		mustOpen(t, i, s)
		wraps := old.count(keys.OpWrap) + twin.count(keys.OpWrap)
		twin.set(keys.ClassKeyState, both...)
		sleep(5 * time.Minute)
		var shut *keys.ShutError
		if err := open(t.Context(), i, s); !errors.As(err, &shut) || shut.Key != "old" {
			t.Errorf("Open under the disabled key = %v, want ShutError", err)
		}
		mustOpen(t, i, mustSeal(t, i))
		if n := old.count(keys.OpWrap) + twin.count(keys.OpWrap) - wraps; n != 0 {
			t.Errorf("a read key was probed by %d wraps", n)
		}
	})
}

// What no region opens any more is the blob's fault.
func TestKeptBlobIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newCloud("mrk")
		twin := old.replica()
		e := several(t, "", old, twin)
		was := start(t, ring(t, e), "")
		s := mustSeal(t, was)
		was.stop()
		e.Name, e.Role = "old", keys.RoleRead
		i := start(t, ring(t, write("prod", newCloud("now")), e), "")
		mustOpen(t, i, s)
		old.mu.Lock()
		clear(old.aeads)
		old.mu.Unlock()
		sleep(2 * time.Minute)
		if !i.w.saw("probe", slog.LevelWarn) || !slices.ContainsFunc(i.Report().Keys, func(k custody.KeyReport) bool { return k.Name == "old" && !k.Unwrap.OpenShut }) {
			t.Error("a damaged blob closed the key, or was not told of")
		}
	})
}

// A key of several regions is probed as one of a single region: with the anchor, in
// each of them, and its last good answer is written down, also while one is away.
func TestRegionsCarryTheAnchor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		eu, dir, w := newCloud("mrk"), t.TempDir(), &watcher{}
		us := eu.replica()
		startWith(t, w, custody.Config{Ring: ring(t, several(t, "", eu, us)), Tuning: tuning, StateDir: dir, Observer: w, Anchor: func() string { return "end" }})
		for _, away := range []bool{false, true} {
			if away {
				eu.set(keys.ClassOutage, both...)
			}
			sleep(30 * time.Minute)
			if err := os.Remove(filepath.Join(dir, "state.json")); err != nil {
				t.Fatal(err)
			}
			us.mu.Lock()
			eu.anchors, us.anchors = nil, nil
			us.mu.Unlock()
			sleep(3 * time.Minute)
			if _, err := os.Stat(filepath.Join(dir, "state.json")); err != nil {
				t.Errorf("one away: %t: the state is not written any more: %v", away, err)
			}
			us.mu.Lock()
			if len(eu.anchors) == 0 && !away || len(us.anchors) == 0 {
				t.Errorf("one away: %t: anchors %q and %q", away, eu.anchors, us.anchors)
			}
			us.mu.Unlock()
		}
	})
}
