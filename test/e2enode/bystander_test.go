//go:build e2enode

package e2enode

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
)

// bystander writes and reads all the time through API servers and counts what
// fails. What is sent to one that is down on purpose does not count: see pause.
type bystander struct {
	name   string
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu     sync.Mutex
	paused map[*controlplane.Client]bool
	done   int
	errs   []error
}

func watch(t *testing.T, name string, apis ...*controlplane.Client) *bystander {
	ctx, cancel := context.WithCancel(t.Context())
	b := &bystander{name: name, cancel: cancel, paused: map[*controlplane.Client]bool{}}
	for i := range apis {
		b.wait.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				b.errand(ctx, fmt.Sprintf("%s-%d-%d", name, i, n), apis[i], apis[(i+1)%len(apis)])
				_ = controlplane.Poll(ctx, moment, tick()) // leave the machine to the cluster
			}
		})
	}
	t.Cleanup(b.stop)
	return b
}

// errand creates a Secret through one API server, changes it through another,
// reads it uncached through both and deletes it.
func (b *bystander) errand(ctx context.Context, name string, here, there *controlplane.Client) {
	b.mu.Lock()
	if b.paused[here] {
		b.mu.Unlock()
		return
	}
	if b.paused[there] {
		there = here
	}
	b.mu.Unlock()
	err := errand(ctx, name, here, there)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil && ctx.Err() == nil && !b.paused[here] && !b.paused[there] {
		b.errs = append(b.errs, err)
	}
	b.done++
}

func errand(ctx context.Context, name string, here, there *controlplane.Client) error {
	s, err := here.CreateSecret(ctx, name, "first")
	if err != nil {
		return err
	}
	s.Data["v"] = []byte("second")
	s.Metadata.ResourceVersion = "" // whatever it is now: a migration may have written it again
	if _, err := there.UpdateSecret(ctx, s); err != nil {
		return err
	}
	for _, api := range []*controlplane.Client{here, there} {
		got, err := api.GetSecret(ctx, name)
		if err != nil {
			return err
		}
		if string(got.Data["v"]) != "second" {
			return fmt.Errorf("%s holds %q", name, got.Data["v"])
		}
	}
	_, err = here.Do(ctx, "DELETE", "/api/v1/namespaces/default/secrets/"+name, "")
	return err
}

// pause says that an API server is taken down now, resume that it is ready.
func (b *bystander) pause(api *controlplane.Client)  { b.set(api, true) }
func (b *bystander) resume(api *controlplane.Client) { b.set(api, false) }

func (b *bystander) set(api *controlplane.Client, paused bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.paused[api] = paused
}

func (b *bystander) stop() { b.cancel(); b.wait.Wait() }

// enough errands to say something. A slow machine gets the time for them.
const enough = 20

func (b *bystander) hasEnough(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done < enough {
		return fmt.Errorf("%d of %d errands", b.done, enough)
	}
	return nil
}

// check ends the bystander and demands that nothing failed.
func (b *bystander) check(t *testing.T) {
	t.Helper()
	within(t, 3*time.Minute, "errands of the bystander", b.hasEnough)
	b.stop()
	t.Logf("bystander %s: %d errands of 5 requests, %d failed", b.name, b.done, len(b.errs))
	if len(b.errs) > 0 {
		t.Errorf("the bystander saw %d of %d errands fail: %v", len(b.errs), b.done, b.errs[:min(len(b.errs), 3)])
	}
}
