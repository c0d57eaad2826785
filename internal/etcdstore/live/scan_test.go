package live

import (
	"context"
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kms-plugin.io/internal/etcdstore"
)

// uneven is an etcd whose objects are small, and from some key on large. It sends no
// message larger than this client takes.
type uneven struct {
	clientv3.KV
	kvs     []*mvccpb.KeyValue
	largest int // page that was sent, or refused by size
}

func (u *uneven) Get(_ context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	op := clientv3.OpGet(key, opts...)
	resp := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: 1}, Count: int64(len(u.kvs))}
	size := 0
	for _, kv := range u.kvs {
		if string(kv.Key) < key {
			continue
		}
		if int64(len(resp.Kvs)) == op.Limit() {
			resp.More = true
			break
		}
		resp.Kvs = append(resp.Kvs, kv)
		size += len(kv.Value)
	}
	u.largest = max(u.largest, size)
	if size > maxMessage {
		return nil, status.Error(codes.ResourceExhausted, "message larger than max")
	}
	return resp, nil
}

// Large objects that come after thousands of small ones are read whole, in pages that
// neither this process nor etcd must hold hundreds of MiB for.
func TestLargeAfterSmall(t *testing.T) {
	u := &uneven{}
	small, large := make([]byte, 250), make([]byte, 200<<10)
	for i := range 12_000 {
		u.kvs = append(u.kvs, &mvccpb.KeyValue{Key: fmt.Appendf(nil, "/a/%06d", i), Value: small})
	}
	for i := range 2_000 {
		u.kvs = append(u.kvs, &mvccpb.KeyValue{Key: fmt.Appendf(nil, "/b/%06d", i), Value: large})
	}
	e := &Etcd{client: &clientv3.Client{KV: u}, config: Config{Endpoints: []string{"test"}}}
	var last string
	n := 0
	err := e.Scan(t.Context(), func(etcdstore.Info) (etcdstore.Visit, error) {
		return func(kv etcdstore.KV) error {
			if n++; string(kv.Key) <= last {
				t.Fatalf("%s comes after %s", kv.Key, last)
			}
			last = string(kv.Key)
			return nil
		}, nil
	})
	if err != nil || n != len(u.kvs) {
		t.Errorf("%d of %d keys, %v", n, len(u.kvs), err)
	}
	if u.largest > 256<<20 {
		t.Errorf("etcd made a page of %d MiB", u.largest>>20)
	}
}
