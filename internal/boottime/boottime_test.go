package boottime

import (
	"encoding/json"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// near allows for what a busy machine puts between two readings of the kernel's
// clocks: it passes for time suspended, in either direction.
func near(got, want time.Duration) bool { return (got - want).Abs() < 500*time.Millisecond }

func TestClockCountsFromItsCreation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Hour)
		c := New()
		for _, d := range []time.Duration{0, 1, time.Millisecond, time.Second - time.Millisecond - 1, time.Second, 48 * time.Hour} {
			before := c.Now()
			time.Sleep(d)
			if got := c.Now() - before; got < d || !near(got, d) {
				t.Errorf("after %s the clock went %s on", d, got)
			}
		}
		if want := 2*time.Second + 48*time.Hour; !near(c.Now(), want) {
			t.Errorf("clock shows %s, want %s", c.Now(), want)
		}
	})
}

// The machine of this test does not sleep, so the clock is told that it had
// slept less when it started.
func TestClockNoticesASuspension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New()
		c.suspended -= time.Hour
		time.Sleep(time.Second - 1)
		if got := c.Now(); got != time.Second-1 {
			t.Errorf("clock shows %s before it looked", got)
		}
		time.Sleep(time.Nanosecond)
		if got := c.Now(); !near(got, time.Hour+lookEvery) {
			t.Errorf("clock shows %s a second later, want %s", got, time.Hour+lookEvery)
		}
		c.suspended -= time.Hour
		time.Sleep(lookEvery)
		if got := c.Now(); !near(got, 2*time.Hour+2*lookEvery) {
			t.Errorf("clock shows %s after a second suspension", got)
		}
	})
}

// Two readings of the kernel's clocks are not one instant: a suspension may
// seem to shrink. The clock stays.
func TestClockNeverGoesBackwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New()
		c.suspended -= time.Hour
		time.Sleep(lookEvery)
		before := c.Now()
		c.suspended += 2 * time.Hour
		time.Sleep(lookEvery)
		if got := c.Now(); got != before+lookEvery {
			t.Errorf("clock went from %s to %s", before, got)
		}
		fresh := New()
		fresh.suspended += time.Hour
		time.Sleep(lookEvery)
		if got := fresh.Now(); !near(got, lookEvery) {
			t.Errorf("a clock that had slept more than it could shows %s, want %s", got, lookEvery)
		}
	})
}

func TestClockIsSafeForConcurrentUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New()
		c.suspended -= time.Minute
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				last := time.Duration(0)
				for range 100 {
					now := c.Now()
					if now < last {
						t.Errorf("clock went from %s to %s", last, now)
					}
					last = now
					time.Sleep(300 * time.Millisecond)
				}
			})
		}
		wg.Wait()
	})
}

func TestStampOfThisBoot(t *testing.T) {
	now := Take()
	if now.BootID == "" || now.Boot <= 0 || time.Since(now.Wall) > time.Minute || now.Wall.Location() != time.UTC {
		t.Fatalf("Take = %+v", now)
	}
	for name, s := range map[string]Stamp{
		"just now":                {Wall: now.Wall, BootID: now.BootID, Boot: now.Boot},
		"wall clock set back":     {Wall: now.Wall.AddDate(1, 0, 0), BootID: now.BootID, Boot: now.Boot / 2},
		"wall clock set forward":  {Wall: now.Wall.AddDate(-1, 0, 0), BootID: now.BootID, Boot: now.Boot / 2},
		"no wall clock, at start": {BootID: now.BootID},
	} {
		before := Take().Boot
		got := s.Elapsed()
		if after := Take().Boot; got < before-s.Boot || got > after-s.Boot {
			t.Errorf("%s: Elapsed = %s, want %s to %s", name, got, before-s.Boot, after-s.Boot)
		}
	}
}

func TestStampOfAnotherBoot(t *testing.T) {
	this := Take()
	synctest.Test(t, func(t *testing.T) {
		ahead := this.Boot + 1000*time.Hour
		now := time.Now()
		cases := map[string]struct {
			stamp Stamp
			want  time.Duration
		}{
			"other boot":                 {Stamp{now, "other", 1}, time.Hour},
			"no boot id":                 {Stamp{now, "", 1}, time.Hour},
			"this boot, ahead of it":     {Stamp{now, this.BootID, ahead}, time.Hour},
			"wall clock ahead":           {Stamp{now.Add(time.Minute), "other", 1}, 59 * time.Minute},
			"wall clock a year ahead":    {Stamp{now.AddDate(1, 0, 0), "other", 1}, 0},
			"ahead in both, same boot":   {Stamp{now.AddDate(1, 0, 0), this.BootID, ahead}, 0},
			"as it comes from the state": {reread(t, Stamp{now.UTC(), "other", 7}), time.Hour},
		}
		time.Sleep(time.Hour)
		for name, c := range cases {
			if got := c.stamp.Elapsed(); got != c.want {
				t.Errorf("%s: Elapsed = %s, want %s", name, got, c.want)
			}
		}
	})
}

func reread(t *testing.T, s Stamp) (out Stamp) {
	t.Helper()
	b, err := json.Marshal(s)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil || !out.Wall.Equal(s.Wall) || out.BootID != s.BootID || out.Boot != s.Boot {
		t.Fatalf("%s becomes %+v, %v", b, out, err)
	}
	return out
}
