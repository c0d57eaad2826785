// Package stored reads what kube-apiserver 1.37 keeps in etcd: which resource a
// key belongs to, and how its value is protected. It is syntax only and never
// fails: what it cannot read it calls Broken and says why. It must not know where
// the bytes come from, or which key would be the right one.
//
// The prefixes are those of k8s.io/apiserver, pkg/server/options/encryptionconfig
// (config.go) and pkg/storage/value/encrypt/identity.
package stored

import (
	"bytes"
	"strings"
)

// Kind is how a value is protected.
type Kind uint8

// The kinds.
const (
	Broken    Kind = iota // says that it is encrypted, and cannot be read further
	Plain                 // a Kubernetes object, not encrypted
	Other                 // neither encrypted nor a Kubernetes object
	KMSv2                 // kms, apiVersion v2
	KMSv1                 // kms, apiVersion v1
	AESCBC                // aescbc: not authenticated
	AESGCM                // aesgcm
	Secretbox             // secretbox
)

var kindNames = [...]string{"broken", "plain", "other", "kms v2", "kms v1", "aescbc", "aesgcm", "secretbox"}

func (k Kind) String() string { return kindNames[k] }

// Encrypted tells the kinds that are under some key.
func (k Kind) Encrypted() bool { return k >= KMSv2 }

// Value is one classified value. Its byte slices alias the input.
type Value struct {
	Kind Kind
	// Name is that of the provider (kms) or of the key (the others) as in the
	// EncryptionConfiguration.
	Name   []byte
	Object Object // of KMSv2
	Reason string // of Broken
}

const root = "k8s:enc:"

var providers = []struct {
	prefix string
	kind   Kind
}{
	{"kms:v2:", KMSv2}, {"kms:v1:", KMSv1}, {"aescbc:v1:", AESCBC}, {"aesgcm:v1:", AESGCM}, {"secretbox:v1:", Secretbox},
}

// least is how many bytes follow the name at least: a nonce or an IV and a tag
// or a block.
var least = map[Kind]int{KMSv1: 2 + 1, AESCBC: 16 + 16, AESGCM: 12 + 16, Secretbox: 24 + 16}

// Classify reads a value.
func Classify(value []byte) Value {
	rest, encrypted := bytes.CutPrefix(value, []byte(root))
	if !encrypted {
		if bytes.HasPrefix(value, []byte("k8s\x00")) || len(value) > 0 && value[0] == '{' || bytes.HasPrefix(value, cborTag) {
			return Value{Kind: Plain}
		}
		return Value{Kind: Other}
	}
	for _, p := range providers {
		body, ok := bytes.CutPrefix(rest, []byte(p.prefix))
		if !ok {
			continue
		}
		// Names of KMS v1 may hold a colon; the API server then goes by its
		// configuration. The first one ends the name here.
		name, body, ok := bytes.Cut(body, []byte(":"))
		switch {
		case !ok:
			return Value{Reason: "no name of a provider or key"}
		case p.kind == KMSv2:
			return kmsV2(name, body)
		case len(body) < least[p.kind]:
			return Value{Name: name, Reason: "shorter than any " + p.kind.String() + " value"}
		}
		return Value{Kind: p.kind, Name: name}
	}
	return Value{Reason: "encrypted by a provider that kube-apiserver does not have"}
}

// cborTag is the self-described CBOR tag (RFC 8949 §3.4.6), which kube-apiserver
// writes if its gate CBORServingAndStorage is on.
var cborTag = []byte{0xd9, 0xd9, 0xf7}

func kmsV2(name, body []byte) Value {
	o, err := parseObject(body)
	if err != nil {
		return Value{Name: name, Reason: err.Error()}
	}
	return Value{Kind: KMSv2, Name: name, Object: o}
}

// GroupResource names a resource as an EncryptionConfiguration does: "secrets",
// "deployments.apps".
type GroupResource struct{ Group, Resource string }

func (g GroupResource) String() string {
	if g.Group == "" {
		return g.Resource
	}
	return g.Resource + "." + g.Group
}

// ParseGroupResource is the inverse of String; the group begins at the first dot.
func ParseGroupResource(s string) GroupResource {
	resource, group, _ := strings.Cut(s, ".")
	return GroupResource{group, resource}
}
