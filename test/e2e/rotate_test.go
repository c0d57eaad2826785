//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"kms-plugin.io/test/controlplane"
)

// trio is three API servers, each with its plugin, on one etcd.
type trio struct {
	*cluster
	p [3]*controlplane.Plugin
	a [3]*controlplane.APIServer
}

func newTrio(t *testing.T) *trio {
	t.Helper()
	x := &trio{cluster: newCluster(t)}
	for i := range x.p {
		x.p[i] = x.plugin(fmt.Sprintf("p%d", i+1), "")
	}
	for i := range x.a {
		x.a[i] = x.apiServer(fmt.Sprintf("api%d", i+1), x.p[i])
	}
	return x
}

func (x *trio) rotateArgs(more ...string) []string {
	args := []string{"rotate", "run", "-n", "default", "--encryption-config", filepath.Join(x.dir, "api1-encryption.yaml"), "--plugin-config", filepath.Join(x.dir, "p1/config.yaml")}
	args = append(append(args, x.kubeFlags(x.a[:]...)...), x.etcdFlags()...)
	return append(args, more...)
}

// fill makes Secrets, many at once.
func (x *trio) fill(n int) {
	x.t.Helper()
	g, ctx := errgroup.WithContext(x.t.Context())
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error {
			_, err := x.a[i%3].CreateSecret(ctx, fmt.Sprintf("fill-%05d", i), "value of fill")
			return err
		})
	}
	if err := g.Wait(); err != nil {
		x.t.Fatal(err)
	}
}

// bystander writes and reads all the time through every API server and counts
// what fails; what is sent to one that is down on purpose does not count.
type bystander struct {
	mu     sync.Mutex
	done   atomic.Int64
	errs   []error
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

func (x *trio) watch() *bystander {
	ctx, cancel := context.WithCancel(x.t.Context())
	b := &bystander{cancel: cancel}
	for i := range x.a {
		b.wait.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := x.errand(ctx, i, n); err != nil && ctx.Err() == nil {
					b.mu.Lock()
					b.errs = append(b.errs, err)
					b.mu.Unlock()
				}
				b.done.Add(1)
			}
		})
	}
	x.t.Cleanup(b.stop)
	return b
}

// errand creates, changes and reads a Secret, uncached and through all.
func (x *trio) errand(ctx context.Context, i, n int) error {
	name := fmt.Sprintf("by-%d-%d", i, n)
	s, err := x.a[i].CreateSecret(ctx, name, "first")
	if err != nil {
		return err
	}
	s.Data["v"] = []byte("second")
	if _, err := x.a[(i+1)%3].UpdateSecret(ctx, s); err != nil {
		return err
	}
	for _, a := range x.a {
		got, err := a.GetSecret(ctx, name)
		if err != nil {
			return err
		}
		if string(got.Data["v"]) != "second" {
			return fmt.Errorf("%s holds %q", name, got.Data["v"])
		}
	}
	return nil
}

func (b *bystander) stop() { b.cancel(); b.wait.Wait() }

func (b *bystander) check(t *testing.T) {
	t.Helper()
	b.stop()
	t.Logf("bystander: %d errands, %d failed", b.done.Load(), len(b.errs))
	if len(b.errs) > 0 || b.done.Load() < 100 {
		t.Errorf("the bystander saw %d of %d errands fail: %v", len(b.errs), b.done.Load(), b.errs[:min(len(b.errs), 3)])
	}
}

// A rotation behind the same ARN under load: one plugin lags, the run is killed
// and started again, and ends with a proof.
func TestRotateRun(t *testing.T) {
	x := newTrio(t)
	x.fill(10_000)
	old := x.keyID(x.p[0])
	b := x.watch()
	x.cloud.SetConsistency(func(caller string, _ int, history []string) int {
		if caller == "p3" {
			return 0
		}
		return len(history) - 1
	})
	x.cloud.Rotate(x.arn)
	x.within(20*time.Second, "two plugins turn", func(context.Context) error {
		if x.keyID(x.p[0]) == old || x.keyID(x.p[1]) == old {
			return errors.New("still the old key_id")
		}
		return nil
	})
	next := x.keyID(x.p[0])
	_, stderr := x.kmsctl(1, x.rotateArgs("--wait", "40s", "--to", next)...)
	if !strings.Contains(stderr, strings.TrimPrefix(x.a[2].URL, "https://")+" writes under key_id") || !strings.Contains(stderr, "nothing was changed") {
		t.Errorf("the laggard is not named: %s", stderr)
	}
	x.cloud.SetConsistency(nil)

	// Killed in the middle of its writes, twice.
	for range 2 {
		cmd := exec.CommandContext(t.Context(), bin.Kmsctl, x.rotateArgs("--to", next, "--qps", "400")...)
		var log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &log, &log
		before := x.onKey(next)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		x.within(90*time.Second, "it writes", func(context.Context) error {
			if n := x.onKey(next) - before; n < 500 {
				return fmt.Errorf("%d written", n)
			}
			return nil
		})
		_ = cmd.Process.Kill()
		if cmd.Wait() == nil {
			t.Fatalf("it ended before it was killed: %s", log.Bytes())
		}
	}
	if n := x.onKey(old); n == 0 {
		t.Fatal("nothing is left to do for the third run")
	}
	out, log := x.kmsctl(0, x.rotateArgs("--to", next, "--qps", "1000")...)
	if !strings.Contains(string(out), "everything is under key_id "+next) || !strings.Contains(log, "all 3 API servers write under key_id "+next) {
		t.Errorf("%s%s", out, log)
	}
	if n := x.onKey(old); n != 0 {
		t.Errorf("%d Secrets are still under the old key_id", n)
	}
	// The canaries are gone, and what is there opens on API servers that start anew.
	for i := range x.a {
		b.check(t)
		x.restart(x.a[i])
	}
	x.read2(x.a[0], "fill-00000")
	x.read2(x.a[2], "fill-09999")
	out, _ = x.kmsctl(0, x.rotateArgs()...) // again: there is nothing to do
	if !strings.Contains(string(out), next) {
		t.Errorf("%s", out)
	}
}

func (x *trio) read2(a *controlplane.APIServer, name string) {
	x.t.Helper()
	if s, err := a.GetSecret(x.t.Context(), name); err != nil || string(s.Data["v"]) != "value of fill" {
		x.t.Errorf("%s: %v", name, err)
	}
}

// onKey counts in etcd, in another way than the product.
func (x *trio) onKey(id string) (n int) {
	x.t.Helper()
	kvs, err := x.etcd.List(x.t.Context(), "/registry/secrets/default/fill-")
	if err != nil {
		x.t.Fatal(err)
	}
	for _, kv := range kvs {
		if bytes.Contains(kv.Value, []byte(id)) {
			n++
		}
	}
	return n
}
