package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"time"
)

// Etcd is one etcd member. Its bytes are read through its own HTTP gateway.
type Etcd struct {
	process
	URL string
}

// StartEtcd starts an etcd with its data below dir.
func StartEtcd(ctx context.Context, b Bin, dir string) (*Etcd, error) {
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	e := &Etcd{URL: client, process: process{name: "etcd", path: b.Etcd, log: logPath(dir, "etcd"), env: plainEnv(), args: []string{
		"--data-dir", filepath.Join(dir, "etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer, "--unsafe-no-fsync",
	}}}
	return e, e.Restart(ctx)
}

// Restart starts it again on the same data.
func (e *Etcd) Restart(ctx context.Context) error {
	if err := e.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	err := Poll(ctx, 50*time.Millisecond, func(ctx context.Context) error {
		if !e.Alive() {
			return errors.New("etcd ended")
		}
		_, err := e.Get(ctx, "/nothing")
		return err
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, e.Tail())
	}
	return nil
}

// KV is one stored value.
type KV struct {
	Key, Value []byte
	ModRev     int64 `json:"mod_revision,string"`
}

// Get reads one value, nil if there is none.
func (e *Etcd) Get(ctx context.Context, key string) ([]byte, error) {
	kvs, err := e.read(ctx, map[string][]byte{"key": []byte(key)})
	if err != nil || len(kvs) == 0 {
		return nil, err
	}
	return kvs[0].Value, nil
}

// List reads all values below a prefix.
func (e *Etcd) List(ctx context.Context, prefix string) ([]KV, error) {
	end := []byte(prefix)
	end[len(end)-1]++
	return e.read(ctx, map[string][]byte{"key": []byte(prefix), "range_end": end})
}

func (e *Etcd) read(ctx context.Context, q map[string][]byte) ([]KV, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL+"/v3/kv/range", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("etcd: %s: %s", resp.Status, data)
	}
	var out struct{ KVs []KV }
	return out.KVs, json.Unmarshal(data, &out)
}
