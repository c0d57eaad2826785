package health_test

import (
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/boottime"
	"kms-plugin.io/internal/health"
	"kms-plugin.io/pkg/keys"
)

// Every pair of what two regions can answer, under both quorums: what closes the
// key, and after how long.
func TestRegionCells(t *testing.T) {
	const never = time.Duration(0)
	limits := health.Limits{MaxOutage: 24 * time.Hour, MaxOutageDecrypt: 72 * time.Hour, KeyState: time.Minute,
		Authorization: 10 * time.Minute, Credential: 4 * time.Hour, WipeAfter: time.Hour}
	const ok, outage, cred, auth, state = keys.ClassNone, keys.ClassOutage, keys.ClassCredential, keys.ClassAuthorization, keys.ClassKeyState
	for name, tc := range map[string]struct {
		here, there keys.Class
		quorum      keys.Quorum
		closes      time.Duration
		by          keys.Class
	}{
		"both well":                          {ok, ok, "", never, ok},
		"one away":                           {ok, outage, "", never, ok},
		"one credential":                     {ok, cred, "", never, ok},
		"one denied":                         {ok, auth, "", never, ok},
		"one disabled":                       {ok, state, "", time.Minute, state},
		"one disabled, quorum all":           {ok, state, keys.QuorumAll, never, ok},
		"both away":                          {outage, outage, "", 24 * time.Hour, outage},
		"away and credential":                {outage, cred, "", 4 * time.Hour, cred},
		"away and denied":                    {outage, auth, "", 10 * time.Minute, auth},
		"away and disabled":                  {outage, state, "", time.Minute, state},
		"away and disabled, quorum all":      {outage, state, keys.QuorumAll, time.Minute, state},
		"both credential":                    {cred, cred, "", 4 * time.Hour, cred},
		"credential and denied":              {cred, auth, "", 10 * time.Minute, auth},
		"credential and disabled":            {cred, state, "", time.Minute, state},
		"both denied":                        {auth, auth, "", 10 * time.Minute, auth},
		"denied and disabled":                {auth, state, "", time.Minute, state},
		"denied and disabled, quorum all":    {auth, state, keys.QuorumAll, time.Minute, state},
		"both disabled, quorum all":          {state, state, keys.QuorumAll, time.Minute, state},
		"damaged here, well there":           {keys.ClassData, ok, "", never, ok},
		"damaged in both, as an outage":      {keys.ClassData, keys.ClassData, "", 24 * time.Hour, outage},
		"cancelled says nothing of the rest": {keys.ClassCanceled, auth, "", 10 * time.Minute, auth},
	} {
		for _, swapped := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := health.NewMachine(boottime.New(), limits)
					answer := func(c keys.Class) health.Answer {
						if c == ok {
							return health.Answer{Known: true}
						}
						return health.Answer{Err: &keys.Error{Class: c}, Known: true}
					}
					m.ObserveRegions([]health.Answer{answer(ok), answer(ok)}, tc.quorum)
					both := []health.Answer{answer(tc.here), answer(tc.there)}
					if swapped {
						both[0], both[1] = both[1], both[0]
					}
					begun := time.Now()
					for time.Since(begun) < 25*time.Hour && !m.Verdict().SealShut {
						m.ObserveRegions(both, tc.quorum)
						time.Sleep(10 * time.Second)
					}
					v := m.Verdict()
					if took := time.Since(begun); tc.closes == never && v.SealShut || tc.closes != never && (took < tc.closes || took > tc.closes+time.Minute) {
						t.Fatalf("closed=%v after %s, want %s", v.SealShut, took, tc.closes)
					}
					if v.Class != tc.by {
						t.Errorf("class %v, want %v", v.Class, tc.by)
					}
					m.ObserveRegions([]health.Answer{answer(ok), answer(ok)}, tc.quorum)
					if v := m.Verdict(); v.State != health.OK {
						t.Errorf("state %q once all is well", v.State)
					}
				})
			})
		}
	}
}

// A replica that never was there is a typo, one that went is a revocation.
func TestAbsentReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := health.Limits{MaxOutage: time.Hour, MaxOutageDecrypt: time.Hour, KeyState: time.Minute, Authorization: time.Hour, Credential: time.Hour}
		gone := &keys.Error{Class: keys.ClassKeyState, Absent: true}
		m := health.NewMachine(boottime.New(), limits)
		observe := func(answers ...health.Answer) health.Verdict {
			for range 10 {
				m.ObserveRegions(answers, keys.QuorumAny)
				time.Sleep(10 * time.Second)
			}
			return m.Verdict()
		}
		if v := observe(health.Answer{Known: true}, health.Answer{Err: gone}); v.State != health.OK {
			t.Errorf("a replica that never was closed the key: %+v", v)
		}
		if v := observe(health.Answer{Known: true}, health.Answer{Err: gone, Known: true}); !v.OpenShut {
			t.Errorf("a replica that went closed nothing: %+v", v)
		}
		if v := observe(health.Answer{Known: true}); v.State != health.OK {
			t.Errorf("back: %+v", v)
		}
		if v := observe(health.Answer{Err: gone}, health.Answer{Err: gone}); !v.OpenShut {
			t.Errorf("a key that is nowhere is open: %+v", v)
		}
	})
}
