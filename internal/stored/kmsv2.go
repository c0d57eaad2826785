package stored

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// DEKSource tells what Object.EncryptedDEKSource holds when opened.
type DEKSource uint64

// The sources (EncryptedDEKSourceType).
const (
	DEK     DEKSource = 0 // an AES-256-GCM key; written up to 1.28
	DEKSeed DEKSource = 1 // a seed for HKDF-SHA256
)

// Object is the EncryptedObject of k8s.io/apiserver
// pkg/storage/value/encrypt/envelope/kmsv2/v2/api.proto. Slices alias the input.
type Object struct {
	Data               []byte // field 1: the encrypted object
	KeyID              []byte // 2: as the plugin's Encrypt gave it
	EncryptedDEKSource []byte // 3: the plugin's ciphertext
	annotations        []byte // 4: the first entry's position on; parsed on demand
	Source             DEKSource
}

var errObject = errors.New("not an EncryptedObject")

func parseObject(body []byte) (Object, error) {
	var o Object
	whole := body
	for len(body) > 0 {
		num, typ, n := protowire.ConsumeTag(body)
		if n < 0 {
			return o, errObject
		}
		field := len(whole) - len(body)
		body = body[n:]
		if num == 5 && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(body)
			if n < 0 {
				return o, errObject
			}
			o.Source, body = DEKSource(v), body[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(body)
		if n < 0 || typ != protowire.BytesType || num > 4 {
			return o, errObject
		}
		body = body[n:]
		switch num {
		case 1:
			o.Data = v
		case 2:
			o.KeyID = v
		case 3:
			o.EncryptedDEKSource = v
		case 4:
			if o.annotations == nil {
				o.annotations = whole[field:]
			}
			if _, _, err := parseAnnotation(v); err != nil {
				return o, err
			}
		}
	}
	return o, o.check()
}

// check is what kube-apiserver demands before it decrypts
// (envelope/kmsv2.ValidateEncryptedObject).
func (o *Object) check() error {
	switch {
	case len(o.Data) == 0:
		return errors.New("no encrypted data")
	case len(o.KeyID) == 0:
		return errors.New("no key_id")
	case len(o.EncryptedDEKSource) == 0:
		return errors.New("no encrypted DEK source")
	case o.Source > DEKSeed:
		return fmt.Errorf("DEK source type %d is unknown", o.Source)
	}
	return nil
}

// Annotation finds the plugin's annotation of a name, nil if there is none.
func (o *Object) Annotation(name string) []byte {
	for k, v := range o.each() {
		if string(k) == name {
			return v
		}
	}
	return nil
}

// Annotations copies all of them, as a DecryptRequest wants them.
func (o *Object) Annotations() map[string][]byte {
	m := map[string][]byte{}
	for k, v := range o.each() {
		m[string(k)] = v
	}
	return m
}

func (o *Object) each() func(yield func(k, v []byte) bool) {
	return func(yield func(k, v []byte) bool) {
		for b := o.annotations; len(b) > 0; {
			num, typ, n := protowire.ConsumeTag(b)
			if n < 0 {
				return
			}
			m := protowire.ConsumeFieldValue(num, typ, b[n:])
			if m < 0 {
				return
			}
			if num == 4 {
				v, _ := protowire.ConsumeBytes(b[n:])
				if k, v, err := parseAnnotation(v); err == nil && !yield(k, v) {
					return
				}
			}
			b = b[n+m:]
		}
	}
}

func parseAnnotation(b []byte) (key, value []byte, err error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || typ != protowire.BytesType || num > 2 {
			return nil, nil, errObject
		}
		v, m := protowire.ConsumeBytes(b[n:])
		if m < 0 {
			return nil, nil, errObject
		}
		if num == 1 {
			key = v
		} else {
			value = v
		}
		b = b[n+m:]
	}
	return key, value, nil
}

const (
	infoSize  = 32
	nonceSize = 12
	tagSize   = 16
)

// Decrypt opens the object with its opened DEK source; etcdKey, the whole key in
// etcd, is its associated data. (k8s.io/apiserver .../encrypt/aes:
// NewHKDFExtendedNonceGCMTransformer, NewGCMTransformerWithUniqueKeyUnsafe.)
func (o *Object) Decrypt(source []byte, etcdKey []byte) ([]byte, error) {
	dek, data := source, o.Data
	if o.Source == DEKSeed {
		if len(data) < infoSize {
			return nil, errors.New("encrypted data is too short")
		}
		var err error
		if dek, err = hkdf.Expand(sha256.New, source, string(data[:infoSize]), 32); err != nil {
			return nil, err
		}
		defer clear(dek)
		data = data[infoSize:]
	}
	block, err := aes.NewCipher(dek)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	if len(data) < nonceSize+tagSize {
		return nil, errors.New("encrypted data is too short")
	}
	return gcm.Open(nil, data[:nonceSize], data[nonceSize:], etcdKey)
}
