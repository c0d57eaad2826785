package health_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/boottime"
	"kms-plugin.io/internal/health"
	"kms-plugin.io/pkg/keys"
)

var limits = health.Limits{MaxOutage: time.Hour, MaxOutageDecrypt: 3 * time.Hour, KeyState: time.Minute,
	Authorization: 10 * time.Minute, Credential: 30 * time.Minute, WipeAfter: 5 * time.Minute}

func fail(c keys.Class) error { return &keys.Error{Class: c, Op: keys.OpWrap, Key: "k"} }

// bubble runs on a fake clock, with a machine that answered well once.
func bubble(t *testing.T, f func(t *testing.T, m *health.Machine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := health.NewMachine(boottime.New(), limits)
		m.Observe(nil)
		f(t, m)
	})
}

// repeat observes an error every ten seconds for a while.
func repeat(m *health.Machine, err error, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Second) {
		m.Observe(err)
	}
}

func TestEachClassHasItsTimer(t *testing.T) {
	for class, limit := range map[keys.Class]time.Duration{
		keys.ClassKeyState: time.Minute, keys.ClassAuthorization: 10 * time.Minute, keys.ClassCredential: 30 * time.Minute,
		keys.ClassOutage: time.Hour, keys.ClassData: time.Hour,
	} {
		t.Run(class.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, m *health.Machine) {
				repeat(m, fail(class), limit-15*time.Second)
				if v := m.Verdict(); v.SealShut || v.State != health.Degraded {
					t.Fatalf("before its limit: %+v", v)
				}
				repeat(m, fail(class), 30*time.Second)
				if v := m.Verdict(); !v.SealShut || v.State != health.Closed {
					t.Fatalf("after its limit: %+v", v)
				}
				m.Observe(nil)
				if v := m.Verdict(); v.SealShut || v.State != health.OK || v.Err != nil {
					t.Errorf("after a good answer: %+v", v)
				}
			})
		})
	}
}

// One stray answer, or two, are no revocation, however long ago.
func TestMinObservations(t *testing.T) {
	bubble(t, func(t *testing.T, m *health.Machine) {
		m.Observe(fail(keys.ClassKeyState))
		m.Observe(fail(keys.ClassKeyState))
		time.Sleep(30 * time.Minute)
		if v := m.Verdict(); v.SealShut {
			t.Fatalf("two answers closed the key: %+v", v)
		}
		m.Observe(fail(keys.ClassKeyState))
		if v := m.Verdict(); !v.SealShut || v.Class != keys.ClassKeyState {
			t.Errorf("the third did not: %+v", v)
		}
	})
}

func TestOutageOpensLongerThanItSeals(t *testing.T) {
	bubble(t, func(t *testing.T, m *health.Machine) {
		repeat(m, fail(keys.ClassOutage), 2*time.Hour)
		if v := m.Verdict(); !v.SealShut || v.OpenShut || v.Wipe {
			t.Errorf("between the limits: %+v", v)
		}
		repeat(m, fail(keys.ClassOutage), time.Hour+time.Minute)
		if v := m.Verdict(); !v.OpenShut || !v.Wipe {
			t.Errorf("after maxOutageDecrypt: %+v", v)
		}
	})
}

func TestWipeFollowsADenial(t *testing.T) {
	bubble(t, func(t *testing.T, m *health.Machine) {
		repeat(m, fail(keys.ClassKeyState), 2*time.Minute)
		if v := m.Verdict(); !v.OpenShut || v.Wipe {
			t.Errorf("closed, not yet wiped: %+v", v)
		}
		time.Sleep(5 * time.Minute)
		if v := m.Verdict(); !v.Wipe {
			t.Errorf("after wipeAfter: %+v", v)
		}
	})
}

func TestCanceledSaysNothing(t *testing.T) {
	bubble(t, func(t *testing.T, m *health.Machine) {
		m.Observe(fail(keys.ClassCanceled))
		if v := m.Verdict(); v.State != health.OK {
			t.Errorf("state %v after a cancelled probe, want ok", v.State)
		}
	})
}

// What an earlier process saw counts: a restart does not begin the outage anew.
func TestRemember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := health.NewMachine(boottime.New(), limits)
		if v := m.Verdict(); v.SealShut || v.State != health.Unknown {
			t.Fatalf("nothing known: %+v", v)
		}
		m.Remember(59 * time.Minute)
		if v := m.Verdict(); v.SealShut {
			t.Errorf("59 minutes ago: %+v", v)
		}
		time.Sleep(2 * time.Minute)
		v := m.Verdict()
		if !v.SealShut || v.Class != keys.ClassOutage || v.Err == nil || !strings.Contains(v.Err.Error(), "maxOutage") {
			t.Errorf("61 minutes ago: %+v", v)
		}
		m.Observe(nil)
		if v := m.Verdict(); v.SealShut {
			t.Errorf("after a good answer: %+v", v)
		}
	})
}

func TestKeyJoinsItsOperations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := health.NewKey(boottime.New(), limits)
		k.Wrap.Observe(nil)
		k.Unwrap.Observe(nil)
		repeat(k.Wrap, fail(keys.ClassAuthorization), 11*time.Minute)
		if !k.Seal().SealShut || k.Open().OpenShut {
			t.Error("a key that may only not wrap must still open, and not seal")
		}
		k.Wrap.Observe(nil)
		repeat(k.Unwrap, fail(keys.ClassAuthorization), 11*time.Minute)
		if !k.Seal().SealShut || !k.Open().OpenShut {
			t.Error("what cannot be unwrapped must not be written")
		}
	})
}
