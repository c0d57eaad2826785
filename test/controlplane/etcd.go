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
	"strings"
	"time"
)

// Etcd is one etcd member. Its bytes are read through its own HTTP gateway.
type Etcd struct {
	process
	URL   string
	Peers []*Etcd // the other members
}

// Clients are the client URLs of all members.
func (e *Etcd) Clients() string {
	urls := []string{e.URL}
	for _, p := range e.Peers {
		urls = append(urls, p.URL)
	}
	return strings.Join(urls, ",")
}

// StartEtcd starts an etcd of one member with its data below dir.
func StartEtcd(ctx context.Context, b Bin, dir string) (*Etcd, error) {
	return StartEtcds(ctx, b, dir, 1)
}

// StartEtcds starts an etcd of n members with their data below dir, and returns the first.
func StartEtcds(ctx context.Context, b Bin, dir string, n int) (*Etcd, error) {
	ports, err := freePorts(2 * n)
	if err != nil {
		return nil, err
	}
	var all []*Etcd
	var initial []string
	for i := range n {
		client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[2*i]), fmt.Sprintf("http://127.0.0.1:%d", ports[2*i+1])
		name, home := "default", "etcd" // the names that etcdutl gives a restored one
		if i > 0 {
			home = fmt.Sprintf("etcd%d", i+1)
			name = home
		}
		initial = append(initial, name+"="+peer)
		all = append(all, &Etcd{URL: client, process: process{name: home, path: b.Etcd, log: logPath(dir, home), env: plainEnv(), args: []string{
			"--name", name, "--data-dir", filepath.Join(dir, home), "--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--unsafe-no-fsync",
		}}})
	}
	for i, e := range all {
		e.args = append(e.args, "--initial-cluster", strings.Join(initial, ","))
		for j, other := range all {
			if i != j {
				e.Peers = append(e.Peers, other)
			}
		}
		if err := e.start(); err != nil {
			return nil, err
		}
	}
	for _, e := range all {
		if err := e.answers(ctx); err != nil {
			return nil, err
		}
	}
	return all[0], nil
}

// KillAll ends every member.
func (e *Etcd) KillAll() error {
	err := e.Kill()
	for _, p := range e.Peers {
		err = errors.Join(err, p.Kill())
	}
	return err
}

// Restart starts it again on the same data.
func (e *Etcd) Restart(ctx context.Context) error {
	if err := e.start(); err != nil {
		return err
	}
	return e.answers(ctx)
}

func (e *Etcd) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
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
