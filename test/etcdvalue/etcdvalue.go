// Package etcdvalue reads what kube-apiserver stored under KMS v2, from the raw
// bytes in etcd: `k8s:enc:kms:v2:<provider>:` and the protobuf EncryptedObject
// of k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2/v2/api.proto.
package etcdvalue

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Object is a stored value.
type Object struct {
	Provider    string
	Data        []byte
	KeyID       string
	DEKSource   []byte
	Annotations map[string][]byte
	Type        uint64 // 1: HKDF-SHA256 seed
}

const prefix = "k8s:enc:kms:v2:"

// Parse reads a value; anything but KMS v2 is an error.
func Parse(value []byte) (Object, error) {
	rest, ok := bytes.CutPrefix(value, []byte(prefix))
	name, body, cut := bytes.Cut(rest, []byte(":"))
	if !ok || !cut {
		return Object{}, fmt.Errorf("value begins %q, not with %q", value[:min(len(value), 24)], prefix)
	}
	o := Object{Provider: string(name), Annotations: map[string][]byte{}}
	for len(body) > 0 {
		num, typ, n := protowire.ConsumeTag(body)
		if n < 0 {
			return Object{}, errors.New("not a protobuf")
		}
		body = body[n:]
		if typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(body)
			if n < 0 || num != 5 {
				return Object{}, errors.New("unexpected field")
			}
			o.Type, body = v, body[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(body)
		if n < 0 || typ != protowire.BytesType {
			return Object{}, errors.New("unexpected field")
		}
		body = body[n:]
		if err := o.set(num, v); err != nil {
			return Object{}, err
		}
	}
	return o, nil
}

func (o *Object) set(num protowire.Number, v []byte) error {
	switch num {
	case 1:
		o.Data = v
	case 2:
		o.KeyID = string(v)
	case 3:
		o.DEKSource = v
	case 4:
		var key, value []byte
		for len(v) > 0 {
			num, _, n := protowire.ConsumeTag(v)
			x, m := protowire.ConsumeBytes(v[max(n, 0):])
			if n < 0 || m < 0 {
				return errors.New("broken annotation")
			}
			if num == 1 {
				key = x
			} else {
				value = x
			}
			v = v[n+m:]
		}
		o.Annotations[string(key)] = value
	default:
		return fmt.Errorf("unknown field %d", num)
	}
	return nil
}

// Decrypt opens the payload with the DEK seed; etcdKey is its associated data
// (k8s.io/apiserver .../encrypt/aes: NewHKDFExtendedNonceGCMTransformer).
func (o Object) Decrypt(seed []byte, etcdKey string) ([]byte, error) {
	if o.Type != 1 || len(o.Data) < 44 {
		return nil, errors.New("not a payload under a seed")
	}
	dek, err := hkdf.Expand(sha256.New, seed, string(o.Data[:32]), 32)
	if err != nil {
		return nil, err
	}
	b, err := aes.NewCipher(dek)
	if err != nil {
		return nil, err
	}
	g, err := cipher.NewGCM(b)
	if err != nil {
		return nil, err
	}
	return g.Open(nil, o.Data[32:44], o.Data[44:], []byte(etcdKey))
}
