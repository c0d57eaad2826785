package custody

import (
	"time"

	"kms-plugin.io/internal/health"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

// slowestCycle is how long one cycle of a prober may take when every call of it is
// answered at the last moment: a new local KEK and its co-recipients, then the
// regions, each a wrap and an unwrap.
const slowestCycle = 3 * 2 * ProbeTimeout

// Bounds are the revocation bounds: for each class the longest time from a change in
// the cloud, as its answers show it, to the last seed that this instance opens under
// the key. Where several KEKs or regions open it, from the change of the last one
// that counts.
func (t Tuning) Bounds() map[keys.Class]time.Duration {
	// The pause before a probe, with its jitter, and the probe that sees it first.
	first := longest(t.ProbeInterval) + slowestCycle
	// The further ones that must agree.
	agree := (health.MinObservations - 1) * (longest(min(t.ProbeInterval, RetryDenied)) + slowestCycle)
	bound := func(limit, agree time.Duration) time.Duration {
		return first + max(limit, agree) + plugin.CallTimeout // of the call that was let in last
	}
	all := map[keys.Class]time.Duration{keys.ClassOutage: bound(t.Limits.MaxOutageDecrypt, 0)}
	for class, limit := range map[keys.Class]time.Duration{keys.ClassKeyState: t.Limits.KeyState, keys.ClassAuthorization: t.Limits.Authorization, keys.ClassCredential: t.Limits.Credential} {
		all[class] = min(bound(limit, agree), all[keys.ClassOutage]) // whatever is wrong, it is no good answer
	}
	return all
}

// longest is a pause with all of its jitter, see pause.
func longest(pause time.Duration) time.Duration { return max(pause, minPause) * 11 / 10 }
