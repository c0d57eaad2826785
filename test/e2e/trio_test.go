//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
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
	p    [3]*controlplane.Plugin
	a    [3]*controlplane.APIServer
	down [3]atomic.Bool // is stopped on purpose
}

func newTrio(t *testing.T) *trio { return newTrioOf(t, newCluster(t)) }

func newTrioOf(t *testing.T, c *cluster) *trio {
	t.Helper()
	x := &trio{cluster: c}
	for i := range x.p {
		x.p[i] = x.plugin(fmt.Sprintf("p%d", i+1), "")
	}
	for i := range x.a {
		x.a[i] = x.apiServer(fmt.Sprintf("api%d", i+1), x.p[i])
	}
	x.serveWidgets(x.a[:]...)
	return x
}

func (x *trio) rotateArgs(more ...string) []string {
	args := []string{"rotate", "run", "-n", "default", "--encryption-config", x.encryptions(3), "--plugin-config", filepath.Join(x.dir, "p1/config.yaml")}
	args = append(append(args, x.kubeFlags(x.a[:]...)...), x.etcdFlags()...)
	return append(args, more...)
}

// encryptions are the EncryptionConfigurations of the API servers api1 to apiN, which
// differ in their sockets.
func (c *cluster) encryptions(n int) string {
	var out []string
	for i := range n {
		out = append(out, filepath.Join(c.dir, fmt.Sprintf("api%d-encryption.yaml", i+1)))
	}
	return strings.Join(out, ",")
}

// fill makes Secrets, many at once, and a custom resource for every fifty.
func (x *trio) fill(n int) {
	x.t.Helper()
	g, ctx := errgroup.WithContext(x.t.Context())
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error {
			if i%50 == 0 {
				w := objects["widgets.example.com"]
				if err := x.a[i%3].Create(ctx, w.path, fmt.Sprintf(w.body, fmt.Sprintf("fill-%05d", i))); err != nil {
					return err
				}
			}
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
	missed atomic.Int64 // errands that met an API server which was down
	errs   []error
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

// errDown is a request to an API server that was stopped meanwhile.
var errDown = errors.New("sent to an API server that is stopped")

func (x *trio) watch() *bystander {
	ctx, cancel := context.WithCancel(x.t.Context())
	b := &bystander{cancel: cancel}
	for i := range x.a {
		b.wait.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				switch err := x.errand(ctx, i, n); {
				case err == nil:
					b.done.Add(1)
				case errors.Is(err, errDown):
					b.missed.Add(1)
				case ctx.Err() == nil:
					b.mu.Lock()
					b.errs = append(b.errs, err)
					b.mu.Unlock()
				}
			}
		})
	}
	x.t.Cleanup(b.stop)
	return b
}

// through asks one API server.
func (x *trio) through(i int, f func(a *controlplane.APIServer) error) error {
	was := x.down[i].Load()
	if err := f(x.a[i]); err != nil {
		if was || x.down[i].Load() {
			return errDown
		}
		return err
	}
	return nil
}

// errand creates, changes and reads a Secret, uncached and through all.
func (x *trio) errand(ctx context.Context, i, n int) error {
	name := fmt.Sprintf("by-%d-%d-%d", i, n, time.Now().UnixNano())
	var s controlplane.Secret
	err := x.through(i, func(a *controlplane.APIServer) (err error) {
		s, err = a.CreateSecret(ctx, name, "first")
		return err
	})
	if err != nil {
		return err
	}
	s.Data["v"] = []byte("second")
	s.Metadata.ResourceVersion = "" // whatever it is now: a rotation may have written it again
	err = x.through((i+1)%3, func(a *controlplane.APIServer) error {
		_, err := a.UpdateSecret(ctx, s)
		return err
	})
	if err != nil {
		return err
	}
	for j := range x.a {
		err := x.through(j, func(a *controlplane.APIServer) error {
			got, err := a.GetSecret(ctx, name)
			if err == nil && string(got.Data["v"]) != "second" {
				err = fmt.Errorf("%s holds %q", name, got.Data["v"])
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// bounce restarts an API server while everything goes on.
func (x *trio) bounce(i int) {
	x.t.Helper()
	x.down[i].Store(true)
	x.restart(x.a[i])
	x.down[i].Store(false)
}

func (b *bystander) stop() { b.cancel(); b.wait.Wait() }

func (b *bystander) check(t *testing.T) {
	t.Helper()
	b.stop()
	t.Logf("bystander: %d errands, %d failed, %d met an API server that was stopped", b.done.Load(), len(b.errs), b.missed.Load())
	if len(b.errs) > 0 || b.done.Load() < 100 {
		t.Errorf("the bystander saw %d of %d errands fail: %v", len(b.errs), b.done.Load(), b.errs[:min(len(b.errs), 3)])
	}
}
