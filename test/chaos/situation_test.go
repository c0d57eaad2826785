//go:build e2e

package chaos

import (
	"context"
	"errors"
	"fmt"
	"time"

	kmsapi "k8s.io/kms/apis/v2"
)

// situation is what goes on when a fault strikes, or what is done in it.
type situation struct {
	name    string
	title   string
	prepare func(x *cell) // before the fault
	act     func(x *cell) // in it
}

var situations = []situation{
	{"steady", "Steady state", nil, func(*cell) {}},
	{"plugin", "Plugin restart in the fault", nil, restartPlugin},
	{"apiserver", "API server restart in the fault", met, func(x *cell) { x.stopAPIServer(); x.startAPIServer() }},
	{"both", "Restart of both in the fault", met, func(x *cell) { x.stopAPIServer(); restartPlugin(x); x.startAPIServer() }},
	{"keychange", "key_id change in progress", halfTurned, func(x *cell) { x.s.cloud.SetConsistency(nil) }},
}

func restartPlugin(x *cell) {
	x.s.restartPlugin(x.t, 0, x.fault.slow, func() {
		if x.fault.stopped != nil {
			x.fault.stopped(x)
		}
	})
	x.restarted = true
	if x.fault.started != nil {
		x.fault.started(x)
	}
}

func (x *cell) stopAPIServer() {
	x.s.down[0].Store(true)
	x.must(x.s.a[0].Stop())
}

// startAPIServer starts the first one; whoever waits for it learns how long it took
// until it was ready.
func (x *cell) startAPIServer() {
	x.starting = make(chan error, 1)
	begun, ctx := time.Now(), x.t.Context()
	go func() {
		err := x.s.a[0].Restart(ctx)
		x.readyAfter = time.Since(begun)
		x.s.down[0].Store(err != nil)
		x.starting <- err
	}()
}

// met: each plugin knows the local KEK that the others would give to an API server that
// starts, also one made after a state file was lost. In a cluster it does so when that
// API server has written once since, by a canary or by chance; the cell before this one
// may have left it otherwise, and then the outage to come meets a stranger.
func met(x *cell) {
	for i := range x.s.a {
		r, err := x.s.kms(i).Encrypt(x.t.Context(), &kmsapi.EncryptRequest{Uid: "met", Plaintext: make([]byte, 32)})
		x.must(err)
		for j := range x.s.a {
			_, err := x.s.kms(j).Decrypt(x.t.Context(), &kmsapi.DecryptRequest{Uid: "met", KeyId: r.KeyId, Ciphertext: r.Ciphertext, Annotations: r.Annotations})
			x.must(err)
		}
	}
}

// halfTurned: the KMS wraps with new material, of which only the first plugin knows, and
// its API server writes under the new key_id already. The second has read what it wrote.
// Of the change before this one nothing is open any more: that is what kmsctl canary is for.
func halfTurned(x *cell) {
	old, err := x.s.status(x.t.Context(), 0)
	x.must(err)
	for i := range x.s.a {
		x.writesUnder(i, func(id string) bool { return id == old.KeyId })
	}
	x.s.cloud.SetConsistency(func(caller string, _ int, history []string) int {
		if caller == "p2" {
			return len(history) - 2
		}
		return len(history) - 1
	})
	x.s.cloud.Rotate(x.s.arn)
	x.writesUnder(0, func(id string) bool { return id != old.KeyId })
}

// writesUnder waits until an API server writes under such a key_id, and has all others
// read what it wrote.
func (x *cell) writesUnder(i int, is func(keyID string) bool) {
	x.t.Helper()
	within(x.t, 90*time.Second, "the API server writes under that key_id", func(ctx context.Context) error {
		if _, err := x.s.a[i].Text(ctx, "/healthz/kms-providers"); err != nil { // has it ask for Status
			return err
		}
		name := fmt.Sprintf("turn-%d", time.Now().UnixNano())
		if _, err := x.s.a[i].CreateSecret(ctx, name, "v"); err != nil {
			return err
		}
		o, err := x.s.stored(ctx, name)
		if err == nil && !is(o.KeyID) {
			err = errors.New("under " + o.KeyID)
		}
		for _, a := range x.s.a {
			if err == nil {
				_, err = a.GetSecret(ctx, name)
			}
		}
		return err
	})
}
