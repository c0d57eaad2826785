package awskms

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"kms-plugin.io/pkg/keys"
)

// issuer hands out credentials that live for an hour, and can fail or hang.
type issuer struct {
	mu     sync.Mutex
	life   time.Duration
	same   time.Time // not zero: what is handed out ends then
	err    error
	hang   bool
	asked  int
	askeds []time.Time
}

func (i *issuer) fetch(ctx context.Context) (aws.Credentials, error) {
	i.mu.Lock()
	i.asked++
	i.askeds = append(i.askeds, time.Now())
	c := aws.Credentials{AccessKeyID: "ASIA", SecretAccessKey: "s", SessionToken: "t", CanExpire: true, Expires: time.Now().Add(i.life)}
	if !i.same.IsZero() {
		c.Expires = i.same
	}
	err, hang := i.err, i.hang
	i.mu.Unlock()
	if hang {
		<-ctx.Done()
		return aws.Credentials{}, ctx.Err()
	}
	return c, err
}

func (i *issuer) times() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

func (i *issuer) set(err error, hang bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err, i.hang = err, hang
}

func kept(t *testing.T, i *issuer) *store {
	s := newStore(i.fetch, keys.Credential{Kind: "container"}, false)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.keep(ctx, func() {})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		time.Sleep(2 * fetchTimeout) // fetches under way end too
	})
	synctest.Wait()
	return s
}

// Over a day of hourly credentials no call ever waits, and the nodes of a cluster do
// not ask together.
func TestRenewedAheadWithJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all []*issuer
		var stores []*store
		for range 20 {
			i := &issuer{life: time.Hour}
			all, stores = append(all, i), append(stores, kept(t, i))
		}
		for range 24 * 60 {
			time.Sleep(time.Minute)
			for _, s := range stores {
				before := time.Now()
				c, err := s.Retrieve(t.Context())
				if left := time.Until(c.Expires); err != nil || time.Since(before) != 0 || left < renewWindow-time.Second || left > time.Hour {
					t.Fatalf("a call waited %s for %v, and %s are left", time.Since(before), err, left)
				}
			}
		}
		seconds := map[int64]int{}
		for _, i := range all {
			seconds[i.askeds[1].Unix()]++
			if i.times() < 24 || i.times() > 29 {
				t.Errorf("asked %d times in a day", i.times())
			}
		}
		if len(seconds) < 10 {
			t.Errorf("20 nodes renewed in %d different seconds", len(seconds))
		}
	})
}

// A source that fails is asked again, ever less often; what is there serves until it
// ends, and then calls fail at once and with the cause.
func TestSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		s := kept(t, i)
		i.set(errors.New("role withdrawn"), false)
		time.Sleep(59 * time.Minute)
		if _, err := s.Retrieve(t.Context()); err != nil {
			t.Fatalf("before its end: %v", err)
		}
		if d := s.describe(); d.Err == nil || !strings.Contains(d.Err.Error(), "role withdrawn") || time.Until(d.Expires) != time.Minute {
			t.Errorf("described as %+v", d)
		}
		time.Sleep(2 * time.Minute)
		before, asked := time.Now(), i.times()
		for range 1000 {
			if _, err := s.Retrieve(t.Context()); err == nil || !strings.Contains(err.Error(), "role withdrawn") {
				t.Fatalf("after its end: %v", err)
			}
		}
		if time.Since(before) != 0 || i.times() > asked+1 {
			t.Errorf("1000 calls took %s and asked %d times", time.Since(before), i.times()-asked)
		}
		if i.times() > 60 {
			t.Errorf("asked %d times within some eight minutes of failure", i.times())
		}
		i.set(nil, false)
		time.Sleep(retryMost * 3 / 2)
		if _, err := s.Retrieve(t.Context()); err != nil || s.describe().Err != nil {
			t.Errorf("healed: %v, %v", err, s.describe().Err)
		}
	})
}

// A source that hangs costs a call no more than it has, once; then nothing.
func TestSourceHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour, hang: true}
		s := kept(t, i)
		ctx, cancel := context.WithTimeout(t.Context(), attemptTimeout)
		defer cancel()
		before := time.Now()
		_, err := s.Retrieve(ctx)
		if e := judgeOf(err); time.Since(before) != attemptTimeout || e.Class != keys.ClassOutage || e.Code != codeCredentials {
			t.Errorf("a call waited %s for %v", time.Since(before), e)
		}
		time.Sleep(fetchTimeout)
		before = time.Now()
		if _, err := s.Retrieve(t.Context()); time.Since(before) != 0 || judgeOf(err).Class != keys.ClassOutage {
			t.Errorf("a later call waited %s for %v", time.Since(before), err)
		}
		i.set(nil, false)
		time.Sleep(fetchTimeout + retryMost)
		if _, err := s.Retrieve(t.Context()); err != nil {
			t.Errorf("healed: %v", err)
		}
	})
}

func judgeOf(err error) keys.Error {
	e, _ := judge(err)
	return e
}

// Without anyone who keeps it, as in config check, the first call fetches, all that
// come meanwhile share it, and one that ended is fetched again.
func TestNobodyKeepsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		s := newStore(i.fetch, keys.Credential{}, false)
		var calls sync.WaitGroup
		var good atomic.Int64
		for range 50 {
			calls.Go(func() {
				if _, err := s.Retrieve(t.Context()); err == nil {
					good.Add(1)
				}
			})
		}
		calls.Wait()
		time.Sleep(61 * time.Minute)
		if _, err := s.Retrieve(t.Context()); err != nil || good.Load() != 50 || i.times() != 2 {
			t.Errorf("%v, %d good, asked %d times", err, good.Load(), i.times())
		}
	})
}

// A KMS that refuses the credential has it renewed soon, but is no load on the source.
func TestRefusedCredentialIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		s := kept(t, i)
		for range 600 {
			s.refused()
			time.Sleep(100 * time.Millisecond)
		}
		if i.times() < 3 || i.times() > 6 {
			t.Errorf("asked %d times in a minute of refusals", i.times())
		}
	})
}

// A source that repeats itself is asked more often towards the end, within bounds.
func TestSameCredentialAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{same: time.Now().Add(time.Hour)}
		s := kept(t, i)
		time.Sleep(58 * time.Minute)
		if i.times() < 5 || i.times() > 40 {
			t.Errorf("asked %d times for the same", i.times())
		}
		i.mu.Lock()
		i.same = time.Now().Add(time.Hour)
		i.mu.Unlock()
		time.Sleep(time.Minute)
		if left := time.Until(s.describe().Expires); left < 50*time.Minute {
			t.Errorf("the next one is not taken: %s left", left)
		}
	})
}

func TestCheck(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		cred   aws.Credentials
		static bool
		want   string
	}{
		"good":            {aws.Credentials{AccessKeyID: "a", SecretAccessKey: "s", CanExpire: true, Expires: now.Add(time.Hour)}, false, ""},
		"empty":           {aws.Credentials{}, true, "answered without"},
		"static":          {aws.Credentials{AccessKeyID: "a", SecretAccessKey: "s", Source: "here"}, false, "long-lived static one (source here)"},
		"with a token":    {aws.Credentials{AccessKeyID: "a", SecretAccessKey: "s", SessionToken: "t"}, false, "long-lived static one"},
		"static, allowed": {aws.Credentials{AccessKeyID: "a", SecretAccessKey: "s"}, true, ""},
		"ended":           {aws.Credentials{AccessKeyID: "a", SecretAccessKey: "s", CanExpire: true, Expires: now.Add(-time.Second)}, false, "ended already"},
	} {
		err := newStore(nil, keys.Credential{}, c.static).check(c.cred)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: check = %v, want %q", name, err, c.want)
		}
	}
}
