package keys_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"kms-plugin.io/pkg/keys"
)

// kek is a KEK that really encrypts; lie changes what it hands out.
type kek struct {
	identity, material string
	aead               cipher.AEAD
	lie                func(*keys.Unwrapped)
	swap               *kek // wraps with another key than it unwraps with
	wrapErr            error
	opened             []keys.Secret // every plaintext it handed out
	bound              []string      // context of every call
}

func newKEK(t *testing.T, identity string) *kek {
	t.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	b, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCMWithRandomNonce(b)
	if err != nil {
		t.Fatal(err)
	}
	return &kek{identity: identity, material: "m1", aead: a}
}

func (k *kek) Identity() string { return k.identity }

func (k *kek) Wrap(ctx context.Context, p keys.Secret, c keys.Context) (keys.Wrapped, error) {
	k.bound = append(k.bound, string(c.Canonical()))
	if k.wrapErr != nil {
		return keys.Wrapped{}, k.wrapErr
	}
	a := k.aead
	if k.swap != nil {
		a = k.swap.aead
	}
	return keys.Wrapped{Blob: a.Seal(nil, nil, p, c.Canonical()), RequestID: "wrap-1"}, ctx.Err()
}

func (k *kek) Unwrap(_ context.Context, blob []byte, c keys.Context) (keys.Unwrapped, error) {
	k.bound = append(k.bound, string(c.Canonical()))
	p, err := k.aead.Open(nil, nil, blob, c.Canonical())
	if err != nil {
		return keys.Unwrapped{}, &keys.Error{Class: keys.ClassData, Op: keys.OpUnwrap, Key: k.identity, Err: err}
	}
	u := keys.Unwrapped{Plaintext: p, Material: k.material, RequestID: "unwrap-1"}
	if k.lie != nil {
		k.lie(&u)
	}
	k.opened = append(k.opened, u.Plaintext)
	return u, nil
}

var bound = keys.NewContext("c", keys.BlobProbe, map[string]string{"team": "a"})

func TestWrapVerified(t *testing.T) {
	k, seed := newKEK(t, "fake:1"), keys.Secret(plain)
	v, err := keys.WrapVerified(t.Context(), k, seed, bound)
	if err != nil || v.Material != "m1" || v.RequestID != "unwrap-1" {
		t.Fatalf("WrapVerified = %+v, %v; want what the unwrap reports", v, err)
	}
	if len(k.opened) != 1 || !bytes.Equal(k.opened[0], make([]byte, len(plain))) {
		t.Error("the copy that was unwrapped for the comparison was not overwritten")
	}
	if string(seed) != plain {
		t.Error("WrapVerified changed its argument")
	}
	if len(k.bound) != 2 || k.bound[0] != k.bound[1] || k.bound[0] != string(bound.Canonical()) {
		t.Errorf("wrap and unwrap were bound to %q", k.bound)
	}
	if u, err := k.Unwrap(t.Context(), v.Blob, bound); err != nil || string(u.Plaintext) != plain {
		t.Errorf("the blob does not open to the seed: %v", err)
	}
}

func TestWrapVerifiedCatchesALiar(t *testing.T) {
	down := &keys.Error{Class: keys.ClassOutage, Op: keys.OpWrap, Key: "fake:1", Err: errors.New("away")}
	for _, c := range []struct {
		name  string
		lie   func(*testing.T, *kek)
		class keys.Class
		text  string
	}{
		{"one bit", func(_ *testing.T, k *kek) { k.lie = func(u *keys.Unwrapped) { u.Plaintext[31] ^= 1 } }, keys.ClassData, "opens to other bytes"},
		{"cut short", func(_ *testing.T, k *kek) { k.lie = func(u *keys.Unwrapped) { u.Plaintext = u.Plaintext[:31] } }, keys.ClassData, "opens to other bytes"},
		{"longer", func(_ *testing.T, k *kek) { k.lie = func(u *keys.Unwrapped) { u.Plaintext = append(u.Plaintext, 0) } }, keys.ClassData, "opens to other bytes"},
		{"nothing", func(_ *testing.T, k *kek) { k.lie = func(u *keys.Unwrapped) { u.Plaintext = nil } }, keys.ClassData, "opens to other bytes"},
		{"other key", func(t *testing.T, k *kek) { k.swap = newKEK(t, "fake:2") }, keys.ClassData, "verify the wrap just made: unwrap with fake:1: data"},
		{"away", func(_ *testing.T, k *kek) { k.wrapErr = down }, keys.ClassOutage, "wrap with fake:1: outage: away"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKEK(t, "fake:1")
			c.lie(t, k)
			v, err := keys.WrapVerified(t.Context(), k, keys.Secret(plain), bound)
			var e *keys.Error
			if !errors.As(err, &e) || e.Class != c.class || e.Key != "fake:1" || !strings.Contains(err.Error(), c.text) {
				t.Errorf("WrapVerified = %v, want class %s and %q", err, c.class, c.text)
			}
			if v.Blob != nil || v.Material != "" {
				t.Errorf("an unverified blob was handed out: %+v", v)
			}
			for _, s := range k.opened {
				if !bytes.Equal(s, make([]byte, len(s))) {
					t.Error("the other bytes were not overwritten")
				}
			}
			if err != nil && strings.Contains(err.Error(), plain) {
				t.Errorf("the error holds the plaintext: %v", err)
			}
		})
	}
}

// The material is what the unwrap says, each time: a rotation must show.
func TestWrapVerifiedReportsTheMaterialOfTheUnwrap(t *testing.T) {
	k := newKEK(t, "fake:1")
	for _, want := range []string{"m1", "m2", ""} {
		k.material = want
		if v, err := keys.WrapVerified(t.Context(), k, keys.Secret(plain), bound); err != nil || v.Material != want {
			t.Errorf("material %q, %v; want %q", v.Material, err, want)
		}
	}
}
