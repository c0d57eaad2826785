//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/revocation"
	"kms-plugin.io/internal/status"
	"kms-plugin.io/test/controlplane"
)

// opener asks a plugin for a seed all the time, as a kube-apiserver does that has not
// got it in memory.
type opener struct {
	mu   sync.Mutex
	last time.Time
	err  error // since the last good answer
}

func (r *runbook) keepOpening(i int, name string) *opener {
	r.t.Helper()
	stored := r.stored(name)
	conn, err := r.p[i].Dial()
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.t.Context())
	o, tick, done := &opener{}, time.NewTicker(50*time.Millisecond), make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_, err := kmsapi.NewKeyManagementServiceClient(conn).Decrypt(ctx, &kmsapi.DecryptRequest{Uid: "opener", KeyId: stored.KeyID, Ciphertext: stored.DEKSource, Annotations: stored.Annotations})
			o.mu.Lock()
			if o.err = err; err == nil {
				o.last = time.Now()
			}
			o.mu.Unlock()
			<-tick.C
		}
	}()
	r.t.Cleanup(func() {
		cancel()
		<-done
		tick.Stop()
		conn.Close()
	})
	return o
}

func (o *opener) state() (time.Time, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.last, o.err
}

// Every command of docs/revocation.md does what it says: the key is disabled, the last
// seed is opened within the bound, what a running API server holds goes with its
// restart, and with the key all comes back by itself.
func TestRevocation(t *testing.T) {
	r := newRunbook(t)
	r.unready = true
	all := map[string]block{}
	for _, b := range blocks(t, filepath.Join(controlplane.Root(), "docs/revocation.md")) {
		all[b.name] = b
	}
	do := func(name string) {
		t.Helper()
		if all[name].text == "" {
			t.Fatalf("docs/revocation.md has no block %q", name)
		}
		r.run(all[name])
	}
	r.setup = all["setup"].text
	for i := range 9 {
		r.create(r.a[i%3], fmt.Sprintf("s%d", i))
	}
	var openers []*opener
	for i := range r.p {
		openers = append(openers, r.keepOpening(i, fmt.Sprintf("s%d", (i+1)%3))) // what another instance sealed
	}
	var before []*status.Plugin
	for i, p := range r.p {
		s, err := status.Scrape(t.Context(), p.HTTP())
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, s)
		r.within(10*time.Second, "it opens", func(context.Context) error {
			if last, err := openers[i].state(); last.IsZero() {
				return errors.Join(errors.New("not yet"), err)
			}
			return nil
		})
	}
	keyID := r.keyID(r.p[0])

	taken := time.Now()
	do("take")
	do("wait")
	bound := time.Duration(before[0].Bounds["key-state"] * float64(time.Second))
	for i, o := range openers {
		last, err := o.state()
		t.Logf("p%d: the bound is %s, the last seed was opened %s after the key was disabled", i+1, bound, last.Sub(taken).Round(time.Millisecond))
		if err == nil || !strings.Contains(err.Error(), "is closed (key-state)") {
			t.Errorf("p%d: Decrypt = %v, want closed", i+1, err)
		}
		if last.Sub(taken) > bound || bound <= 0 {
			t.Errorf("p%d: that is later than the bound", i+1)
		}
	}
	r.read(r.a[0], "s0") // what no plugin can do: it has the seed in memory
	do("servers")
	do("restart")
	do("prove")
	r.proven()
	for i, a := range r.a {
		if s, err := a.GetSecret(t.Context(), "s0"); err == nil {
			t.Errorf("api%d serves %q after its restart", i+1, s.Data)
		}
	}

	do("back")
	for i, a := range r.a {
		if err := a.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.read(a, fmt.Sprintf("s%d", i))
		if got := r.keyID(r.p[i]); got != keyID {
			t.Errorf("p%d: key_id is %q, was %q", i+1, got, keyID)
		}
		if s, err := status.Scrape(t.Context(), r.p[i].HTTP()); err != nil || !s.Started.Equal(before[i].Started) {
			t.Errorf("p%d was restarted: %v", i+1, err)
		}
	}
	r.create(r.a[0], "again")
	do("audit")
	r.story(filepath.Join(r.dir, "p1", "audit.log"))
}

// proven reads the proof that a block has kept.
func (r *runbook) proven() {
	r.t.Helper()
	var proof revocation.Report
	data, err := os.ReadFile(filepath.Join(r.dir, backupsOf, "revocation.json"))
	if err == nil {
		err = json.Unmarshal(data, &proof)
	}
	if err != nil || !proof.Proven || proof.Closed == nil || len(proof.Checks) < 6 {
		r.t.Errorf("the proof kept is %s, %v", data, err)
	}
}

// story demands that an audit log tells all that happened to the key, in its order.
func (r *runbook) story(path string) {
	r.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	want := []string{"decrypt ok", "degraded key-state", "decrypt ok", "closed key-state", "decrypt closed", "ok ok", "decrypt ok"}
	var told []string
	for line := range bytes.Lines(data) {
		rec, err := audit.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			r.t.Fatal(err)
		}
		if now := rec.Op + " " + rec.Outcome; len(told) == 0 || told[len(told)-1] != now {
			told = append(told, now)
		}
		if len(want) > 0 && rec.Op+" "+rec.Outcome == want[0] {
			want = want[1:]
		}
	}
	r.t.Logf("the audit log tells: %s", strings.Join(told, ", "))
	if len(want) > 0 {
		r.t.Errorf("the audit log does not tell of %v", want)
	}
}
