package drill

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/pkg/keys"
)

type source [][2]string

func (s source) Scan(_ context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	visit, err := begin(etcdstore.Info{Kind: "snapshot", Revision: 9, Keys: int64(len(s))})
	if err != nil {
		return err
	}
	for _, kv := range s {
		// As a real source: the slices are good only until visit returns.
		k, v := []byte(kv[0]), []byte(kv[1])
		if err := visit(etcdstore.KV{Key: k, Value: v}); err != nil {
			return err
		}
		clear(k)
		clear(v)
	}
	return nil
}

// plugin opens "wrapped-X" to the seed X.
type plugin struct {
	mu    sync.Mutex
	calls map[string]int
	fail  func(r *kmsapi.DecryptRequest, call int) error
	given []keys.Secret
}

func (p *plugin) Decrypt(_ context.Context, r *kmsapi.DecryptRequest) (keys.Secret, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := string(r.Ciphertext) + "/" + r.KeyId + "/" + string(r.Annotations["a.b"])
	p.calls[id]++
	if p.fail != nil {
		if err := p.fail(r, p.calls[id]); err != nil {
			return nil, err
		}
	}
	s := seed(strings.TrimPrefix(string(r.Ciphertext), "wrapped-"))
	p.given = append(p.given, s)
	return s, nil
}

func seed(name string) keys.Secret {
	h := sha256.Sum256([]byte(name))
	return h[:]
}

func field(num protowire.Number, v string) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte(v))
}

// object is stored at key under a seed.
func object(provider, keyID, seedName, annotation, key, plain string) [2]string {
	info := strings.Repeat("i", 32)
	dek, err := hkdf.Expand(sha256.New, seed(seedName), info, 32)
	if err != nil {
		panic(err)
	}
	b, err := aes.NewCipher(dek)
	if err != nil {
		panic(err)
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		panic(err)
	}
	nonce := strings.Repeat("n", 12)
	v := field(1, info+string(g.Seal([]byte(nonce), []byte(nonce), []byte(plain), []byte(key))))
	v = append(v, field(2, keyID)...)
	v = append(v, field(3, "wrapped-"+seedName)...)
	v = append(v, field(4, string(append(field(1, "a.b"), field(2, annotation)...)))...)
	v = protowire.AppendVarint(protowire.AppendTag(v, 5, protowire.VarintType), 1)
	return [2]string{key, "k8s:enc:kms:v2:" + provider + ":" + string(v)}
}

func TestOpensEachSeedOnce(t *testing.T) {
	var s source
	for i := range 50 {
		k := fmt.Sprintf("/registry/secrets/ns/%d", i)
		s = append(s, object("p", "id1", fmt.Sprintf("s%d", i%3), "h", k, "k8s\x00x"))
	}
	s = append(s, object("p", "id2", "s0", "h", "/registry/secrets/ns/other-id", "{}"),
		object("p", "id1", "s0", "h2", "/registry/secrets/ns/other-header", "{}"),
		[2]string{"/registry/configmaps/ns/c", "k8s\x00"},
		[2]string{"/registry/secrets/ns/cbc", "k8s:enc:aescbc:v1:k:" + strings.Repeat("x", 32)})
	p := &plugin{calls: map[string]int{}}
	var last int64
	r, err := Run(t.Context(), s, p, Options{Progress: func(done, _ int64) { last = done }})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Passed() || r.Seeds != 5 || r.Opened != 5 || r.Calls != 5 || r.KMSv2 != 52 || r.Objects != 54 || r.Others != 1 || len(r.Keys) != 2 || r.Keys[0].Objects != 51 {
		t.Errorf("%+v", r)
	}
	for id, n := range p.calls {
		if n != 1 {
			t.Errorf("%s was asked for %d times", id, n)
		}
	}
	for _, s := range p.given {
		if string(s) != string(make([]byte, len(s))) {
			t.Error("a seed was not wiped")
		}
	}
	if last != 0 {
		t.Errorf("progress %d", last)
	}
}

func TestWhatStaysShut(t *testing.T) {
	const at = "/registry/secrets/ns/a"
	moved := object("p", "id", "s", "h", at, "{}")
	moved[0] = at + "x"
	p := &plugin{calls: map[string]int{}, fail: func(r *kmsapi.DecryptRequest, _ int) error {
		if r.KeyId == "shut" {
			return status.Error(codes.FailedPrecondition, "key is disabled")
		}
		return nil
	}}
	for name, tt := range map[string]struct {
		s     source
		o     Options
		cause string
	}{
		"the plugin refuses": {source{object("p", "shut", "s", "h", at, "{}"), object("p", "shut", "s2", "h", at+"2", "{}")}, Options{}, "FailedPrecondition: key is disabled"},
		"another etcd key":   {source{moved}, Options{}, "the object under it does not"},
		"no object":          {source{object("p", "id", "s", "h", at, "nonsense")}, Options{}, "no Kubernetes object"},
	} {
		r, err := Run(t.Context(), tt.s, p, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		if r.Passed() || r.Opened != 0 || len(r.Keys) != 1 || len(r.Keys[0].Failures) != 1 || r.Keys[0].Failures[0].Seeds != len(tt.s) ||
			!strings.Contains(r.Keys[0].Failures[0].Cause, tt.cause) || r.Keys[0].Failures[0].Key == "" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	broken, err := Run(t.Context(), source{{at, "k8s:enc:kms:v2:p:\xff"}}, p, Options{})
	if err != nil || broken.Passed() {
		t.Errorf("a broken value passes: %+v, %v", broken, err)
	}
	other, err := Run(t.Context(), source{object("theirs", "shut", "s", "h", at, "{}")}, p, Options{Provider: "ours"})
	if err != nil || other.Passed() || other.Seeds != 0 || other.Others != 1 {
		t.Errorf("another provider: %+v, %v", other, err)
	}
}

func TestBusyPluginIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := source{object("p", "id", "s", "h", "/registry/secrets/ns/a", "{}")}
		p := &plugin{calls: map[string]int{}, fail: func(_ *kmsapi.DecryptRequest, call int) error {
			if call < 3 {
				return status.Error(codes.ResourceExhausted, "busy")
			}
			return nil
		}}
		r, err := Run(t.Context(), s, p, Options{})
		if err != nil || !r.Passed() || r.Calls != 3 {
			t.Errorf("%+v, %v", r, err)
		}
		p = &plugin{calls: map[string]int{}, fail: func(*kmsapi.DecryptRequest, int) error { return status.Error(codes.Unavailable, "outage") }}
		r, err = Run(t.Context(), s, p, Options{})
		if err != nil || r.Passed() || r.Calls != tries {
			t.Errorf("an outage: %+v, %v", r, err)
		}
	})
}

func TestNoReportWithoutAnEnd(t *testing.T) {
	s := source{object("p", "id", "s", "h", "/registry/secrets/ns/a", "{}")}
	gone := errors.New("nobody serves it")
	p := &plugin{calls: map[string]int{}, fail: func(*kmsapi.DecryptRequest, int) error { return gone }}
	if r, err := Run(t.Context(), s, p, Options{}); !errors.Is(err, gone) || r != nil {
		t.Errorf("no plugin: %v, %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := Run(ctx, s, &plugin{calls: map[string]int{}}, Options{}); !errors.Is(err, context.Canceled) || r != nil {
		t.Errorf("canceled: %v, %v", r, err)
	}
}
