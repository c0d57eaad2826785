//go:build e2e

package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/test/controlplane"
	"kms-plugin.io/test/etcdvalue"
)

// tally counts what clients of the API servers, and those of their plugins, saw.
type tally struct {
	mu                    sync.Mutex
	reads, writes         int
	readErrs, writeErrs   []error
	readyz, statuses      int
	readyzErrs, statusErr []error
	calls                 int // of Encrypt and Decrypt
	callErrs              []error
	slowStatus, slow      time.Duration
	missed                int // met what was stopped on purpose
}

// String counts what was done.
func (c *tally) String() string {
	return fmt.Sprintf("%d reads, %d writes, slowest %s; %d readyz; %d statuses, slowest %s; %d calls, %d failed", c.reads, c.writes, c.slow, c.readyz, c.statuses, c.slowStatus, c.calls, len(c.callErrs))
}

// blame makes an error of every kind of failure but those excused.
func (c *tally) blame(t *testing.T, excused ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for what, errs := range map[string][]error{"read": c.readErrs, "write": c.writeErrs, "/readyz": c.readyzErrs, "Status": c.statusErr, "Encrypt or Decrypt": c.callErrs} {
		if len(errs) > 0 && !slices.Contains(excused, what) {
			t.Errorf("%s failed %d times: %v", what, len(errs), errs[0])
		}
	}
	if c.reads < 10 || c.writes < 10 || c.readyz < 3 || c.statuses < 5 {
		t.Error("the bystander has hardly been there")
	}
}

// bystander uses the cluster all the time and knows of no fault.
type bystander struct {
	s       *stage
	current atomic.Pointer[tally]
	kept    etcdvalue.Object // what one API server wrote and every plugin is asked to open
	errands []atomic.Int64   // ended well, by API server
	cancel  context.CancelFunc
	wait    sync.WaitGroup
}

// watch starts one. It ends with the stage.
func (s *stage) watch() *bystander {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	b := &bystander{s: s, cancel: cancel, errands: make([]atomic.Int64, len(s.a))}
	b.current.Store(&tally{})
	_, err := s.a[len(s.a)-1].CreateSecret(ctx, "kept", "v")
	if err == nil {
		b.kept, err = s.stored(ctx, "kept")
	}
	if err != nil {
		s.t.Fatal(err)
	}
	for i := range s.a {
		b.loop(ctx, 20*time.Millisecond, func(n int) { b.errand(ctx, i, n) })
		b.loop(ctx, 250*time.Millisecond, func(int) { b.ready(ctx, i) })
		b.loop(ctx, 100*time.Millisecond, func(int) { b.status(ctx, i) })
		b.loop(ctx, 200*time.Millisecond, func(int) { b.call(ctx, i) })
	}
	s.t.Cleanup(b.stop)
	return b
}

func (b *bystander) stop() { b.cancel(); b.wait.Wait() }

func (b *bystander) loop(ctx context.Context, pause time.Duration, f func(n int)) {
	b.wait.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			f(n)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	})
}

// next begins a new count and returns the one so far.
func (b *bystander) next() *tally { return b.current.Swap(&tally{}) }

// through asks one API server; what meets one that is stopped does not count. It says
// whether it went well.
func (b *bystander) through(ctx context.Context, i int, write bool, f func(ctx context.Context, a *controlplane.APIServer) error) bool {
	was, began := b.s.down[i].Load(), time.Now()
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := f(bounded, b.s.a[i])
	if ctx.Err() != nil {
		return false
	}
	t := b.current.Load()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && (was || b.s.down[i].Load()) {
		t.missed++
		return false
	}
	t.slow = max(t.slow, time.Since(began))
	if write {
		t.writes++
	} else {
		t.reads++
	}
	switch err = named(b.s.a[i], err); {
	case err != nil && write:
		t.writeErrs = append(t.writeErrs, err)
	case err != nil:
		t.readErrs = append(t.readErrs, err)
	}
	return err == nil
}

func named(a *controlplane.APIServer, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s at %s: %w", a.URL, time.Now().Format("15:04:05.000"), err)
}

// errand makes a Secret through one API server, changes it through the next, reads it
// uncached through all, and removes it.
func (b *bystander) errand(ctx context.Context, i, n int) {
	name := fmt.Sprintf("by-%d-%d-%d", i, n, time.Now().UnixNano())
	var made controlplane.Secret
	if !b.through(ctx, i, true, func(ctx context.Context, a *controlplane.APIServer) (err error) {
		made, err = a.CreateSecret(ctx, name, "first")
		return err
	}) {
		return
	}
	made.Data["v"] = []byte("second")
	all := b.through(ctx, (i+1)%len(b.s.a), true, func(ctx context.Context, a *controlplane.APIServer) error {
		_, err := a.UpdateSecret(ctx, made)
		return err
	})
	for j := range b.s.a {
		all = b.through(ctx, j, false, func(ctx context.Context, a *controlplane.APIServer) error {
			got, err := a.GetSecret(ctx, name)
			if v := string(got.Data["v"]); err == nil && v != "first" && v != "second" {
				err = fmt.Errorf("%s holds %q", name, v)
			}
			return err
		}) && all
	}
	all = b.through(ctx, i, true, func(ctx context.Context, a *controlplane.APIServer) error {
		_, err := a.Do(ctx, http.MethodDelete, "/api/v1/namespaces/default/secrets/"+name, "")
		return err
	}) && all
	if all {
		b.errands[i].Add(1)
	}
}

// ready asks for /readyz, as a load balancer does.
func (b *bystander) ready(ctx context.Context, i int) {
	was := b.s.down[i].Load()
	text, err := b.s.a[i].Text(ctx, "/readyz")
	if ctx.Err() != nil || err != nil && (was || b.s.down[i].Load()) {
		return
	}
	t := b.current.Load()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.readyz++
	if err != nil {
		t.readyzErrs = append(t.readyzErrs, named(b.s.a[i], errors.Join(err, errors.New(text))))
	}
}

// status asks the plugin of an API server.
func (b *bystander) status(ctx context.Context, i int) {
	was, began := b.s.dead[i].Load(), time.Now()
	_, err := b.s.status(ctx, i)
	if ctx.Err() != nil || was || b.s.dead[i].Load() {
		return
	}
	t := b.current.Load()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.statuses++
	t.slowStatus = max(t.slowStatus, time.Since(began))
	if err != nil {
		t.statusErr = append(t.statusErr, atPlugin(i, err))
	}
}

func atPlugin(i int, err error) error {
	return fmt.Errorf("p%d at %s: %w", i+1, time.Now().Format("15:04:05.000"), err)
}

// call seals and opens, as an API server that has no seed in memory.
func (b *bystander) call(ctx context.Context, i int) {
	was := b.s.dead[i].Load()
	bounded, cancel := context.WithTimeout(ctx, 6*time.Second)
	defer cancel()
	_, errE := b.s.kms(i).Encrypt(bounded, &kmsapi.EncryptRequest{Uid: "chaos", Plaintext: make([]byte, 32)}, grpc.WaitForReady(true))
	_, errD := b.s.kms(i).Decrypt(bounded, &kmsapi.DecryptRequest{Uid: "chaos", KeyId: b.kept.KeyID, Ciphertext: b.kept.DEKSource, Annotations: b.kept.Annotations}, grpc.WaitForReady(true))
	if ctx.Err() != nil || was || b.s.dead[i].Load() {
		return
	}
	t := b.current.Load()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, err := range []error{errE, errD} {
		t.calls++
		if err != nil {
			t.callErrs = append(t.callErrs, atPlugin(i, err))
		}
	}
}
