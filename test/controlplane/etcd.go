package controlplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
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
	var out struct{ KVs []KV }
	err := e.call(ctx, "range", q, &out)
	return out.KVs, err
}

// Put writes a value and returns its revision.
func (e *Etcd) Put(ctx context.Context, key string, value []byte) (int64, error) {
	var out struct {
		Header struct {
			Revision int64 `json:"revision,string"`
		}
	}
	err := e.call(ctx, "put", map[string][]byte{"key": []byte(key), "value": value}, &out)
	return out.Header.Revision, err
}

// Compact forgets the history before a revision.
func (e *Etcd) Compact(ctx context.Context, revision int64) error {
	return e.call(ctx, "compaction", map[string]any{"revision": revision, "physical": true}, &struct{}{})
}

func (e *Etcd) call(ctx context.Context, method string, q, out any) error {
	body, err := json.Marshal(q)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL+"/v3/kv/"+method, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd: %s: %s", resp.Status, data)
	}
	return json.Unmarshal(data, out)
}

// RestoreEtcd makes a new etcd of a snapshot, with etcd's own tool.
func RestoreEtcd(ctx context.Context, b Bin, dir, file string) (*Etcd, error) {
	data := filepath.Join(dir, "etcd")
	out, err := exec.CommandContext(ctx, b.Etcdutl, "snapshot", "restore", file, "--data-dir", data).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("etcdutl: %w: %s", err, out)
	}
	return StartEtcd(ctx, b, dir)
}
