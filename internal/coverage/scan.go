// Package coverage counts what is stored under which key: every value of an etcd
// at one revision, by resource, provider and key_id. Its Report is what people,
// programs and auditors are shown. It needs no key and opens nothing, and must
// not know how etcd is reached.
package coverage

import (
	"bytes"
	"context"
	"crypto/sha256"

	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/stored"
)

// Options are what is known beside etcd. All are optional.
type Options struct {
	Prefix     string                   // of kube-apiserver's keys, "/registry" if empty
	Encryption *encryptionconfig.Config // what should be encrypted, and how
	Resources  []string                 // instead of Encryption: what should be encrypted
	Names      *Names                   // the plugin's configuration: names for key_ids
	Current    string                   // key_id that writes now; "": that of the newest value
	Gates      []Requirement
	// Progress is called now and then with the number of keys read, and with 0 if
	// the scan starts over.
	Progress func(done, total int64)
}

// group is all values of one resource under one key.
type group struct {
	resource *resourceTally
	key      *keyTally // nil if not encrypted
	kind     stored.Kind
	objects  int64
	reasons  map[string]int64 // of Broken
	samples  []string         // a few keys in etcd
	class    string           // how it was judged, as in bars
}

type resourceTally struct {
	key    stored.Key
	groups []*group
}

type keyTally struct {
	kind      stored.Kind
	provider  string
	keyID     string
	objects   int64
	seeds     map[[16]byte]struct{}
	localKEKs map[[envelope.LocalKEKID]byte]struct{}
	headers   map[*header]int64
	foreign   int64 // values without a header of ours
	oldest    int64
	newest    int64
	dekType   [2]int64
}

// header is a header of ours, parsed once for all the values it stands in.
type header struct {
	*envelope.Header
	err error
}

// tally is the state of one scan. Memory depends on the number of resources,
// keys, seeds and local KEKs, not on the number of objects.
type tally struct {
	prefix    string
	resources map[string]*resourceTally // by place in etcd
	groups    map[string]*group
	keys      map[string]*keyTally
	headers   map[string]*header
	info      etcdstore.Info
	total     int64
	scratch   []byte
}

const (
	maxSamples    = 3
	maxHeaders    = 100_000 // parsed headers that are kept; more are parsed again
	progressEvery = 1 << 10
)

// Scan reads a source through. The report is complete or there is an error.
func Scan(ctx context.Context, source etcdstore.Source, o Options) (*Report, error) {
	if o.Prefix == "" {
		o.Prefix = "/registry"
	}
	var t *tally
	err := source.Scan(ctx, func(info etcdstore.Info) (etcdstore.Visit, error) {
		t = &tally{prefix: o.Prefix, info: info, resources: map[string]*resourceTally{}, groups: map[string]*group{},
			keys: map[string]*keyTally{}, headers: map[string]*header{}}
		if o.Progress == nil {
			return t.visit, nil
		}
		o.Progress(0, info.Keys)
		return func(kv etcdstore.KV) error {
			if t.total%progressEvery == 0 {
				o.Progress(t.total, info.Keys)
			}
			return t.visit(kv)
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return t.report(o), nil
}

func (t *tally) visit(kv etcdstore.KV) error {
	t.total++
	v := stored.Classify(kv.Value)
	g := t.group(kv.Key, v)
	g.objects++
	if len(g.samples) < maxSamples {
		g.samples = append(g.samples, string(kv.Key))
	}
	if v.Kind == stored.Broken {
		g.reasons[v.Reason]++
	}
	if k := g.key; k != nil {
		k.objects++
		k.newest = max(k.newest, kv.ModRevision)
		if k.oldest == 0 || kv.ModRevision < k.oldest {
			k.oldest = kv.ModRevision
		}
		if v.Kind == stored.KMSv2 {
			t.countKMSv2(k, &v.Object)
		}
	}
	return nil
}

// group finds where a value is counted, without allocating for the known ones.
func (t *tally) group(key []byte, v stored.Value) *group {
	place := placeOf(key, t.prefix)
	s := append(t.scratch[:0], place...)
	s = append(s, 0, byte(v.Kind))
	s = append(append(s, v.Name...), 0)
	s = append(s, v.Object.KeyID...)
	t.scratch = s
	if g := t.groups[string(s)]; g != nil {
		return g
	}
	r := t.resources[string(place)]
	if r == nil {
		r = &resourceTally{key: stored.ParseKey(key, t.prefix)}
		t.resources[string(place)] = r
	}
	g := &group{resource: r, kind: v.Kind, reasons: map[string]int64{}}
	if v.Kind.Encrypted() {
		id := string(s[len(place)+1:])
		if t.keys[id] == nil {
			t.keys[id] = &keyTally{kind: v.Kind, provider: string(v.Name), keyID: string(v.Object.KeyID), seeds: map[[16]byte]struct{}{},
				localKEKs: map[[envelope.LocalKEKID]byte]struct{}{}, headers: map[*header]int64{}}
		}
		g.key = t.keys[id]
	}
	r.groups = append(r.groups, g)
	t.groups[string(s)] = g
	return g
}

// outside is the place of all keys that are not kube-apiserver's.
var outside = []byte("outside")

// placeOf is the part of a key that tells the resource: the first two segments
// below the prefix. It may split a resource in two; report joins it again.
func placeOf(key []byte, prefix string) []byte {
	if !bytes.HasPrefix(key, []byte(prefix)) || len(key) == len(prefix) || key[len(prefix)] != '/' {
		if stored.Beside(key) {
			return key[:min(len(key), 64)]
		}
		return outside // one place: there may be millions, of others or of a wrong prefix
	}
	rest := key[len(prefix)+1:]
	i := bytes.IndexByte(rest, '/')
	if i < 0 {
		return key
	}
	if bytes.IndexByte(rest[:i], '.') < 0 && !twoSegments(rest[:i]) {
		return key[:len(prefix)+1+i]
	}
	if j := bytes.IndexByte(rest[i+1:], '/'); j >= 0 {
		return key[:len(prefix)+1+i+1+j]
	}
	return key
}

// twoSegments are the first segments that do not tell the resource alone.
func twoSegments(first []byte) bool {
	return string(first) == "services" || string(first) == "ranges"
}

func (t *tally) countKMSv2(k *keyTally, o *stored.Object) {
	k.dekType[o.Source]++
	h := sha256.Sum256(o.EncryptedDEKSource)
	seed := [16]byte(h[:16])
	if _, known := k.seeds[seed]; !known {
		k.seeds[seed] = struct{}{}
	}
	annotation := o.Annotation(envelope.AnnotationKey)
	if annotation == nil {
		k.foreign++
		return
	}
	hd := t.headers[string(annotation)]
	if hd == nil {
		hd = parseHeader(annotation)
		if len(t.headers) >= maxHeaders {
			clear(t.headers)
		}
		t.headers[string(annotation)] = hd
	}
	k.headers[hd]++
	if hd.err == nil {
		k.localKEKs[hd.LocalKEK] = struct{}{}
	}
}

func parseHeader(annotation []byte) *header {
	h, err := envelope.Parse(bytes.Clone(annotation))
	return &header{h, err}
}
