package live

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kms-plugin.io/internal/etcdstore"
)

// History is every version of every key that a watch could still replay: all
// since the last compaction, and what they replaced. A key may be visited often.
func (e *Etcd) History() etcdstore.Source { return history{e} }

type history struct{ *Etcd }

const (
	historyIdle = time.Minute // without any answer
	askProgress = 250 * time.Millisecond
)

// Scan implements etcdstore.Source.
func (h history) Scan(ctx context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	now, err := h.client.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithLimit(1), clientv3.WithKeysOnly())
	if err != nil {
		return h.explain(ctx, err)
	}
	info := etcdstore.Info{Kind: "history", Endpoints: h.config.Endpoints, ClusterID: fmt.Sprintf("%016x", now.Header.ClusterId), Revision: now.Header.Revision, Version: h.version, Compacted: 1}
	for {
		visit, err := begin(info)
		if err != nil {
			return err
		}
		compacted, err := h.replay(ctx, info, visit)
		if err != nil || compacted == 0 {
			return h.explain(ctx, err)
		}
		if compacted > info.Revision {
			return nil // all that was there when we began is compacted away
		}
		info.Compacted = compacted
	}
}

// replay visits the events from info.Compacted to info.Revision; if the first of
// them is compacted away it returns where to begin again.
func (h history) replay(ctx context.Context, info etcdstore.Info, visit etcdstore.Visit) (compacted int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := h.client.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(info.Compacted), clientv3.WithPrevKV())
	ask := time.NewTicker(askProgress)
	defer ask.Stop()
	idle := time.NewTimer(historyIdle)
	defer idle.Stop()
	for {
		select {
		case r, open := <-watch:
			switch {
			case r.CompactRevision > 0:
				return r.CompactRevision, nil
			case r.Err() != nil:
				return 0, r.Err()
			case !open:
				return 0, context.Cause(ctx)
			}
			idle.Reset(historyIdle)
			if err := visitEvents(r.Events, visit); err != nil {
				return 0, err
			}
			if n := len(r.Events); n > 0 && r.Events[n-1].Kv.ModRevision >= info.Revision || r.IsProgressNotify() && r.Header.Revision >= info.Revision {
				return 0, nil
			}
		case <-ask.C:
			// The newest revision may be a deletion that is compacted: only the
			// progress tells then that there is no more.
			if err := h.client.RequestProgress(ctx); err != nil {
				return 0, err
			}
		case <-idle.C:
			return 0, context.DeadlineExceeded
		}
	}
}

func visitEvents(events []*clientv3.Event, visit etcdstore.Visit) error {
	for _, e := range events {
		for _, kv := range []*mvccpb.KeyValue{e.Kv, e.PrevKv} {
			if kv == nil || len(kv.Value) == 0 {
				continue // a deletion
			}
			if err := visit(etcdstore.KV{Key: kv.Key, Value: kv.Value, ModRevision: kv.ModRevision}); err != nil {
				return err
			}
		}
	}
	return nil
}
