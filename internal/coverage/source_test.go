package coverage

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/pkg/keys"
)

func pluginConfig(extra string) *Names {
	c, problems := config.Parse([]byte(`apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: ` + cluster + `
socket: {path: /run/k.sock}
stateDir: /var/lib/k
keys:
- {name: a, role: read, awskms: {keyARN: "` + arnA + `"}}
- {name: b, role: write, awskms: {keyARN: "` + arnB + `"}}
` + extra))
	if p := problems.Fatal(); len(p) > 0 {
		panic(p)
	}
	return NewNames(c, time.Now())
}

func encryption(text string) *encryptionconfig.Config {
	c, err := encryptionconfig.Parse([]byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n" + text))
	if err != nil {
		panic(err)
	}
	return c
}

const secretsByOurs = `- {resources: [secrets, widgets.example.com], providers: [{kms: {apiVersion: v2, name: ours, endpoint: x}}, {aescbc: {keys: [{name: key1, secret: eA==}]}}, {identity: {}}]}
`

func headerOf(kek, material string, generation uint64, local byte) *envelope.Header {
	return &envelope.Header{Suite: envelope.SuiteXAES, Type: keys.BlobLocalKEK, Identity: kek, Material: material, Generation: generation,
		Cluster: envelope.ClusterDigest(cluster), Context: keys.Context(nil).Digest(), LocalKEK: [32]byte{local}, Wrapped: []byte("wrapped")}
}

// value is a stored object; id "" is the key_id that the header proves.
func value(provider, name, id string, h *envelope.Header, source string) string {
	if id == "" {
		id = keys.KeyID(name, h.Facts(cluster))
	}
	b := field(1, "data")
	b = append(b, field(2, id)...)
	b = append(b, field(3, source)...)
	if h != nil {
		raw, err := h.Marshal()
		if err != nil {
			panic(err)
		}
		b = append(b, field(4, string(append(field(1, envelope.AnnotationKey), field(2, string(raw))...)))...)
	}
	b = protowire.AppendVarint(protowire.AppendTag(b, 5, protowire.VarintType), 1)
	return "k8s:enc:kms:v2:" + provider + ":" + string(b)
}

func field(num protowire.Number, v string) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte(v))
}

// source is an etcd in memory; each key has the revision of its place.
type source struct {
	kvs      [][2]string
	restarts int
	err      error
}

func (s *source) add(key, value string) { s.kvs = append(s.kvs, [2]string{key, value}) }

func (s *source) Scan(_ context.Context, begin func(etcdstore.Info) (etcdstore.Visit, error)) error {
	for i := range s.restarts + 1 {
		visit, err := begin(etcdstore.Info{Kind: "live", ClusterID: "0001", Revision: int64(len(s.kvs)), Keys: int64(len(s.kvs))})
		if err != nil {
			return err
		}
		n := len(s.kvs)
		if i < s.restarts {
			n /= 2
		}
		for j, kv := range s.kvs[:n] {
			if err := visit(etcdstore.KV{Key: []byte(kv[0]), Value: []byte(kv[1]), ModRevision: int64(j + 1)}); err != nil {
				return err
			}
		}
	}
	return s.err
}

func sample() *source {
	s := &source{}
	for i := range 5 {
		s.add(fmt.Sprintf("/registry/secrets/ns/a%d", i), oldA)
	}
	s.add("/registry/secrets/ns/cbc", cbc)
	s.add("/registry/secrets/ns/plain", "k8s\x00secret")
	s.add("/registry/secrets/ns/broken", "k8s:enc:kms:v2:ours:\xff")
	for i := range 7 {
		s.add(fmt.Sprintf("/registry/secrets/ns/b%d", i), newB)
	}
	s.add("/registry/example.com/widgets/ns/w", newB)
	s.add("/registry/configmaps/ns/c", "k8s\x00configmap")
	s.add("/registry/masterleases/1", "k8s\x00lease")
	s.add("/calico/x", "y")
	s.add("compact_rev_key", "12")
	return s
}

func scan(t *testing.T, s *source, o Options) *Report {
	t.Helper()
	r, err := Scan(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func resource(t *testing.T, r *Report, name string) Resource {
	t.Helper()
	for _, x := range r.Resources {
		if x.Resource == name {
			return x
		}
	}
	t.Fatalf("no resource %s in %v", name, r.Resources)
	return Resource{}
}
