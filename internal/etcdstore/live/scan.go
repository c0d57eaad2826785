package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kms-plugin.io/internal/etcdstore"
)

// Scan implements etcdstore.Source.
func (e *Etcd) Scan(ctx context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	for restarts := 0; ; restarts++ {
		revision, err := e.readAll(ctx, true, begin)
		if !errors.Is(err, rpctypes.ErrCompacted) {
			return e.explain(ctx, err)
		}
		if restarts == maxRestarts {
			return &Error{e.config.Endpoints[0], fmt.Sprintf("revision %d was compacted away while it was read, for the %dth time", revision, restarts+1),
				"let kube-apiserver compact less often meanwhile (--etcd-compaction-interval), or read from nearer to etcd; kmsctl coverage can read a snapshot instead: etcdctl snapshot save FILE, then kmsctl coverage --snapshot FILE"}
		}
		if e.config.Compacted != nil {
			e.config.Compacted(revision)
		}
	}
}

// Walk implements etcdstore.Walker: each page is of the revision that etcd is at then.
func (e *Etcd) Walk(ctx context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	_, err := e.readAll(ctx, false, begin)
	return e.explain(ctx, err)
}

type page struct {
	resp *clientv3.GetResponse
	err  error
}

// readAll reads the next page while the last one is visited. It returns the revision
// of the first page; if that is held, all are of it.
func (e *Etcd) readAll(ctx context.Context, hold bool, begin func(etcdstore.Info) (etcdstore.Visit, error)) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &pager{etcd: e, next: "\x00", limit: firstLimit, retries: 1}
	first, err := p.fetch(ctx)
	if err != nil {
		return 0, err
	}
	revision := first.Header.Revision
	if hold {
		p.revision = revision
	} else {
		p.retries = walkRetries
	}
	visit, err := begin(etcdstore.Info{
		Kind: "live", Endpoints: e.config.Endpoints, ClusterID: fmt.Sprintf("%016x", first.Header.ClusterId),
		Revision: revision, Version: e.version, Keys: first.Count,
	})
	if err != nil {
		return revision, err
	}
	pages := make(chan page)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.run(ctx, first, pages)
	}()
	err = visitAll(pages, visit)
	cancel()
	<-done
	return revision, err
}

func visitAll(pages <-chan page, visit etcdstore.Visit) error {
	for p := range pages {
		if p.err != nil {
			return p.err
		}
		for _, kv := range p.resp.Kvs {
			if err := visit(etcdstore.KV{Key: kv.Key, Value: kv.Value, ModRevision: kv.ModRevision}); err != nil {
				return err
			}
		}
	}
	return nil
}

// pager fetches one page after the other; one goroutine at a time uses it.
type pager struct {
	etcd     *Etcd
	next     string
	limit    int64
	revision int64 // 0 is the newest
	read     int64
	retries  int // of a page
}

// A walk waits for etcd for a minute at least, so that a member may restart.
const (
	walkRetries = 13
	retryPause  = 5 * time.Second
)

// away: no etcd answers, or it has no leader.
func away(err error) bool {
	var e rpctypes.EtcdError
	code := status.Code(err)
	if errors.As(err, &e) {
		code = e.Code()
	}
	return code == codes.Unavailable || code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded)
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (p *pager) run(ctx context.Context, first *clientv3.GetResponse, out chan<- page) {
	defer close(out)
	for resp, err := first, error(nil); ; resp, err = p.fetch(ctx) {
		select {
		case out <- page{resp, err}:
		case <-ctx.Done():
			return
		}
		if err != nil || !resp.More {
			return
		}
		p.advance(resp)
	}
}

// advance moves on and aims the next page at pageBytes.
func (p *pager) advance(resp *clientv3.GetResponse) {
	n := int64(len(resp.Kvs))
	size := int64(0)
	for _, kv := range resp.Kvs {
		size += int64(len(kv.Key) + len(kv.Value))
	}
	p.read += n
	p.next = string(resp.Kvs[n-1].Key) + "\x00"
	p.limit = min(max(pageBytes/max(size/n, 1), minLimit), maxLimit, 4*p.limit)
}

// fetch reads one page; it tries a smaller one if the page is larger than a
// message may be, and once more if the connection broke. With a revision every member
// answers the same; without one the quorum does, and is waited for: what was walked for
// hours would be lost, and no page is older for it.
func (p *pager) fetch(ctx context.Context) (*clientv3.GetResponse, error) {
	for tries := 0; ; tries++ {
		resp, err := p.try(ctx)
		switch {
		case err == nil:
			if len(resp.Kvs) == 0 && resp.More {
				return nil, errors.New("etcd says that there is more, and sends nothing")
			}
			return resp, nil
		case status.Code(err) == codes.ResourceExhausted && p.limit > 1:
			p.limit = max(p.limit/8, 1)
		case ctx.Err() != nil, errors.Is(err, rpctypes.ErrCompacted), tries >= p.retries, tries > 0 && !away(err):
			return nil, err
		case tries > 0:
			if pause(ctx, retryPause) != nil {
				return nil, err
			}
		}
	}
}

func (p *pager) try(ctx context.Context) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	return p.etcd.client.Get(ctx, p.next, clientv3.WithFromKey(), clientv3.WithLimit(p.limit), clientv3.WithRev(p.revision))
}
