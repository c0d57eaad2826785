package awskms

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"kms-plugin.io/pkg/keys"
)

// elsewhere is a source, and a KMS, whose clock is off against that of the node. It
// hands out the next credential five minutes before the last one ends.
type elsewhere struct {
	off, life time.Duration
	ends      time.Time // of the credential handed out last, by the clock of the node; for fetch alone
}

func (e *elsewhere) fetch(context.Context) (aws.Credentials, error) {
	if time.Until(e.ends) < 5*time.Minute {
		e.ends = time.Now().Add(e.life)
	}
	told := e.ends.Add(e.off)
	return aws.Credentials{AccessKeyID: "ASIA", SecretAccessKey: "s", SessionToken: e.ends.Format(time.RFC3339Nano), CanExpire: true, Expires: told}, nil
}

// accepted is what a KMS says of a call: the token tells when it really ends.
func accepted(c aws.Credentials) bool {
	ends, err := time.Parse(time.RFC3339Nano, c.SessionToken)
	return err == nil && time.Now().Before(ends)
}

// A clock that is behind has a credential renewed when the KMS refuses it; one that is
// ahead has a fresh one held for ended, for the last minutes of the one before.
func TestClockOfTheNodeIsOff(t *testing.T) {
	const every = 10 * time.Second // a call
	for name, tc := range map[string]struct {
		off, life time.Duration // off: how far the KMS is ahead of the node
		most      time.Duration // without a credential that works, in each life
		ended     bool          // it is held for ended
	}{
		"right":                 {0, time.Hour, 0, false},
		"behind":                {10 * time.Minute, time.Hour, 2 * every, false},
		"behind, short life":    {10 * time.Minute, 15 * time.Minute, 2 * every, false},
		"ahead":                 {-10 * time.Minute, time.Hour, 6 * time.Minute, true},
		"ahead, less than 5":    {-4 * time.Minute, time.Hour, 0, false},
		"ahead by a whole life": {-10 * time.Minute, 9 * time.Minute, 9 * time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &elsewhere{off: tc.off, life: tc.life}
				s := newStore(e.fetch, keys.Credential{Kind: "container"}, false)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { s.keep(ctx, func() {}); close(done) }()
				synctest.Wait()
				var without time.Duration
				ended := false
				const lives = 10
				for start := time.Now(); time.Since(start) < lives*tc.life; time.Sleep(every) {
					c, err := s.Retrieve(t.Context())
					ended = ended || errors.Is(err, errEnded)
					if err == nil && accepted(c) {
						continue
					}
					if without += every; err == nil {
						s.refused()
					}
				}
				cancel()
				<-done
				t.Logf("%s in each life without a credential", without/lives)
				if without > lives*tc.most || ended != tc.ended {
					t.Errorf("%s in each life without a credential, held for ended: %t; want %s at most, %t", without/lives, ended, tc.most, tc.ended)
				}
			})
		})
	}
}
