// Package drill rehearses a restore: it has a plugin open every distinct DEK
// source of an etcd, and decrypts one object under each, in memory. It tells
// counts and causes, never contents. It must not know keys of its own.
package drill

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/stored"
	"kms-plugin.io/pkg/keys"
)

// APIVersion of the JSON form. Fields are only ever added.
const APIVersion = "kms-plugin.io/drill/v1"

// Opener is a plugin.
type Opener interface {
	Decrypt(context.Context, *kmsapi.DecryptRequest) (keys.Secret, error)
}

// Options of a drill.
type Options struct {
	Provider string // only values of this provider; "" is all of KMS v2
	Progress func(done, total int64)
}

// Report is what came of it.
type Report struct {
	APIVersion string         `json:"apiVersion"`
	Source     etcdstore.Info `json:"source"`
	Objects    int64          `json:"objects"` // of all kinds
	KMSv2      int64          `json:"kmsV2"`   // of those, under KMS v2 and the provider asked for
	Broken     int64          `json:"broken"`  // say that they are encrypted, and cannot be read
	Others     int64          `json:"others"`  // encrypted in another way: not rehearsed
	Seeds      int            `json:"seeds"`   // distinct DEK sources
	Opened     int            `json:"opened"`  // by the plugin, and one object decrypted under each
	Calls      int64          `json:"calls"`   // to the plugin, repeated ones included
	Seconds    float64        `json:"seconds"`
	Keys       []Key          `json:"keys"`
}

// Key is what is under one key_id.
type Key struct {
	Provider string    `json:"provider"`
	KeyID    string    `json:"keyID"`
	Objects  int64     `json:"objects"`
	Seeds    int       `json:"seeds"`
	Opened   int       `json:"opened"`
	Failures []Failure `json:"failures,omitempty"`
}

// Failure is a cause, and how many DEK sources it keeps shut.
type Failure struct {
	Cause string `json:"cause"`
	Seeds int    `json:"seeds"`
	Key   string `json:"key"` // in etcd, of one object
}

// Passed tells whether everything that is encrypted by the plugin can be read. A
// drill that opened nothing proves nothing.
func (r *Report) Passed() bool { return r.Broken == 0 && r.Opened == r.Seeds && r.Seeds > 0 }

const (
	workers = 4
	tries   = 5
	backoff = 250 * time.Millisecond
)

type drill struct {
	opener Opener
	mu     sync.Mutex
	report *Report
	keys   map[string]*Key
}

// sample is one object under a DEK source; its bytes are its own.
type sample struct {
	key    *Key
	object stored.Object
	in     []byte // its key in etcd
}

// Run reads the source through. A DEK source that does not open is in the report;
// an error means that the drill is not complete.
func Run(ctx context.Context, source etcdstore.Source, opener Opener, o Options) (*Report, error) {
	d := &drill{opener: opener, report: &Report{APIVersion: APIVersion, Keys: []Key{}}, keys: map[string]*Key{}}
	begun := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan sample)
	for range workers {
		g.Go(func() error {
			for s := range work {
				if err := d.try(ctx, s); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(work)
		return d.read(ctx, source, o, work)
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	d.report.Seconds = time.Since(begun).Seconds()
	for _, k := range d.keys {
		slices.SortFunc(k.Failures, func(a, b Failure) int { return cmp.Or(cmp.Compare(b.Seeds, a.Seeds), cmp.Compare(a.Cause, b.Cause)) })
		d.report.Keys = append(d.report.Keys, *k)
	}
	slices.SortFunc(d.report.Keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.KeyID, b.KeyID))
	})
	return d.report, nil
}

const progressEvery = 1 << 10

func (d *drill) read(ctx context.Context, source etcdstore.Source, o Options, work chan<- sample) error {
	seen := map[[16]byte]struct{}{}
	r := d.report
	return source.Scan(ctx, func(info etcdstore.Info) (etcdstore.Visit, error) {
		r.Source = info
		return func(kv etcdstore.KV) error {
			if o.Progress != nil && r.Objects%progressEvery == 0 {
				o.Progress(r.Objects, info.Keys)
			}
			r.Objects++
			v := stored.Classify(kv.Value)
			switch {
			case v.Kind == stored.Broken:
				r.Broken++
				return nil
			case v.Kind != stored.KMSv2 || o.Provider != "" && string(v.Name) != o.Provider:
				if v.Kind.Encrypted() {
					r.Others++
				}
				return nil
			}
			r.KMSv2++
			k := d.key(string(v.Name), string(v.Object.KeyID))
			id := sourceID(v.Name, &v.Object)
			if _, known := seen[id]; known {
				return nil
			}
			seen[id] = struct{}{}
			return d.send(ctx, work, k, kv)
		}, nil
	})
}

func (d *drill) key(provider, keyID string) *Key {
	d.mu.Lock()
	defer d.mu.Unlock()
	id := provider + "\x00" + keyID
	if d.keys[id] == nil {
		d.keys[id] = &Key{Provider: provider, KeyID: keyID}
	}
	d.keys[id].Objects++
	return d.keys[id]
}

// sourceID tells apart what kube-apiserver would ask the plugin for apart
// (k8s.io/apiserver .../envelope/kmsv2.generateCacheKey), and the provider.
func sourceID(provider []byte, o *stored.Object) [16]byte {
	h := sha256.New()
	put := func(b []byte) {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		_, _ = h.Write(b)
	}
	put(provider)
	put([]byte{byte(o.Source)})
	put(o.KeyID)
	put(o.EncryptedDEKSource)
	annotations := o.Annotations()
	names := make([]string, 0, len(annotations))
	for k := range annotations {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		put([]byte(k))
		put(annotations[k])
	}
	return [16]byte(h.Sum(nil))
}

// send hands on a copy: what the source gave is valid only now.
func (d *drill) send(ctx context.Context, work chan<- sample, k *Key, kv etcdstore.KV) error {
	s := sample{k, stored.Classify(bytes.Clone(kv.Value)).Object, bytes.Clone(kv.Key)}
	select {
	case work <- s:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// try counts one DEK source.
func (d *drill) try(ctx context.Context, s sample) error {
	cause, err := d.open(ctx, s)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.report.Seeds++
	s.key.Seeds++
	if cause == "" {
		d.report.Opened++
		s.key.Opened++
		return nil
	}
	for i := range s.key.Failures {
		if f := &s.key.Failures[i]; f.Cause == cause {
			f.Seeds++
			return nil
		}
	}
	s.key.Failures = append(s.key.Failures, Failure{cause, 1, string(s.in)})
	return nil
}

// open returns why the object stays shut, or an error that ends the drill.
func (d *drill) open(ctx context.Context, s sample) (cause string, err error) {
	seed, err := d.ask(ctx, s)
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case err != nil:
		st, isStatus := status.FromError(err)
		if !isStatus {
			return "", err // there is no plugin
		}
		return st.Code().String() + ": " + st.Message(), nil
	}
	defer seed.Destroy()
	plain, err := s.object.Decrypt(seed, s.in)
	if err != nil {
		return "the DEK source opens, and the object under it does not: " + err.Error(), nil
	}
	defer clear(plain)
	if stored.Classify(plain).Kind != stored.Plain {
		return "the object opens, and is no Kubernetes object", nil
	}
	return "", nil
}

// ask gives a busy plugin time.
func (d *drill) ask(ctx context.Context, s sample) (seed keys.Secret, err error) {
	r := &kmsapi.DecryptRequest{Uid: "kmsctl-drill", KeyId: string(s.object.KeyID), Ciphertext: s.object.EncryptedDEKSource, Annotations: s.object.Annotations()}
	for try := range tries {
		d.mu.Lock()
		d.report.Calls++
		d.mu.Unlock()
		if seed, err = d.opener.Decrypt(ctx, r); !busy(err) {
			return seed, err
		}
		select {
		case <-time.After(backoff << try):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, err
}

func busy(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		return true
	}
	return false
}
