// Package keystest is the conformance suite of KEK providers: what custody
// relies on, and what no error may leak. What a provider cannot do is declared
// in its Config, never skipped in silence.
package keystest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"kms-plugin.io/pkg/keys"
)

// Config describes the provider under test.
type Config struct {
	New    func(t *testing.T) keys.KEK // the same key each time
	Other  func(t *testing.T) keys.KEK // another key of the same provider
	Rotate func(t *testing.T)          // gives the key new material; the next New has it
}

var bound = keys.NewContext("conformance", keys.BlobProbe, map[string]string{"team": "a"})

// Run runs the suite.
func Run(t *testing.T, c Config) {
	t.Run("identity", func(t *testing.T) { identity(t, c) })
	t.Run("round trip", func(t *testing.T) { roundTrip(t, c) })
	t.Run("context", func(t *testing.T) { contexts(t, c) })
	t.Run("damage", func(t *testing.T) { damage(t, c) })
	t.Run("other key", func(t *testing.T) { otherKey(t, c) })
	t.Run("cancel", func(t *testing.T) { cancel(t, c) })
	t.Run("concurrent", func(t *testing.T) { concurrent(t, c) })
	t.Run("rotation", func(t *testing.T) { rotation(t, c) })
}

func identity(t *testing.T, c Config) {
	a, b := c.New(t), c.New(t)
	if a.Identity() != b.Identity() {
		t.Errorf("two instances of one key have identities %q and %q", a.Identity(), b.Identity())
	}
	if a.Identity() == c.Other(t).Identity() {
		t.Errorf("two keys have one identity %q", a.Identity())
	}
	e := keys.Entry{Name: "k", Role: keys.RoleRead, Generation: 1, KEK: a}
	if err := keys.ValidateEntry(e); err != nil {
		t.Errorf("identity %q: %v", a.Identity(), err)
	}
}

func roundTrip(t *testing.T, c Config) {
	wrap, unwrap := c.New(t), c.New(t)
	for _, n := range []int{1, 32, 37, 69, 128} {
		plain := keys.Secret(bytes.Repeat([]byte{byte(n)}, n))
		first, second := mustWrap(t, wrap, plain), mustWrap(t, wrap, plain)
		if bytes.Equal(first.Blob, second.Blob) {
			t.Errorf("two wraps of %d equal bytes are equal", n)
		}
		if len(first.Blob) > keys.MaxBlob {
			t.Errorf("the blob of %d bytes has %d, at most %d are allowed", n, len(first.Blob), keys.MaxBlob)
		}
		u, err := unwrap.Unwrap(t.Context(), first.Blob, bound)
		if err != nil || !bytes.Equal(u.Plaintext, plain) {
			t.Fatalf("%d bytes do not come back: %v", n, err)
		}
		if u.Material == "" || len(u.Material) > keys.MaxMaterial {
			t.Errorf("material %q", u.Material)
		}
		if !bytes.Equal(plain, bytes.Repeat([]byte{byte(n)}, n)) {
			t.Error("Wrap changed its argument")
		}
	}
}

func contexts(t *testing.T, c Config) {
	k := c.New(t)
	blob := mustWrap(t, k, secret).Blob
	for name, other := range map[string]keys.Context{
		"none":          nil,
		"value changed": keys.NewContext("conformance", keys.BlobProbe, map[string]string{"team": "b"}),
		"pair missing":  keys.NewContext("conformance", keys.BlobProbe, nil),
		"pair added":    keys.NewContext("conformance", keys.BlobProbe, map[string]string{"team": "a", "x": "y"}),
		"other type":    keys.NewContext("conformance", keys.BlobSeed, map[string]string{"team": "a"}),
		"other cluster": keys.NewContext("another", keys.BlobProbe, map[string]string{"team": "a"}),
		"moved border":  keys.NewContext("conformance", keys.BlobProbe, map[string]string{"tea": "ma"}),
	} {
		mustRefuse(t, k, name, blob, other)
	}
}

func damage(t *testing.T, c Config) {
	k := c.New(t)
	blob := mustWrap(t, k, secret).Blob
	for i := 0; i < len(blob); i += 1 + len(blob)/64 {
		changed := bytes.Clone(blob)
		changed[i] ^= 1
		mustRefuse(t, k, fmt.Sprintf("byte %d changed", i), changed, bound)
	}
	mustRefuse(t, k, "empty", nil, bound)
	mustRefuse(t, k, "one byte", blob[:1], bound)
	mustRefuse(t, k, "cut short", blob[:len(blob)-1], bound)
	mustRefuse(t, k, "longer", append(bytes.Clone(blob), 0), bound)
	mustRefuse(t, k, "4 KiB of zeros", make([]byte, 4096), bound)
}

func otherKey(t *testing.T, c Config) {
	mustRefuse(t, c.New(t), "blob of another key", mustWrap(t, c.Other(t), secret).Blob, bound)
}

func cancel(t *testing.T, c Config) {
	k := c.New(t)
	blob := mustWrap(t, k, secret).Blob
	ctx, stop := context.WithCancel(t.Context())
	stop()
	begun := time.Now()
	_, err := k.Wrap(ctx, secret, bound)
	_, uerr := k.Unwrap(ctx, blob, bound)
	for _, err := range []error{err, uerr} {
		if keys.ClassOf(err) != keys.ClassCanceled {
			t.Errorf("a cancelled call = %v, want class canceled", err)
		}
	}
	if d := time.Since(begun); d > 2*time.Second {
		t.Errorf("cancelled calls took %s", d)
	}
}

func concurrent(t *testing.T, c Config) {
	k := c.New(t)
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			plain := keys.Secret(bytes.Repeat([]byte{byte(n)}, 32))
			v, err := keys.WrapVerified(t.Context(), k, plain, bound)
			if err != nil || v.Material == "" {
				t.Errorf("WrapVerified = %v", err)
			}
		})
	}
	wg.Wait()
}

func rotation(t *testing.T, c Config) {
	old := c.New(t)
	before, err := keys.WrapVerified(t.Context(), old, secret, bound)
	if err != nil {
		t.Fatal(err)
	}
	c.Rotate(t)
	k := c.New(t)
	if k.Identity() != old.Identity() {
		t.Errorf("rotation changed the identity from %q to %q", old.Identity(), k.Identity())
	}
	after, err := keys.WrapVerified(t.Context(), k, secret, bound)
	if err != nil {
		t.Fatal(err)
	}
	if after.Material == before.Material {
		t.Errorf("material after a rotation is still %q", after.Material)
	}
	u, err := k.Unwrap(t.Context(), before.Blob, bound)
	if err != nil || u.Material != before.Material {
		t.Errorf("what was wrapped before = material %q, %v; want %q", u.Material, err, before.Material)
	}
}

var secret = keys.Secret(strings.Repeat("secretsecret", 3)[:32])

func mustWrap(t *testing.T, k keys.KEK, plain keys.Secret) keys.Wrapped {
	t.Helper()
	w, err := k.Wrap(t.Context(), plain, bound)
	if err != nil {
		t.Fatalf("Wrap: %v", err)
	}
	return w
}

// mustRefuse demands ClassData and an error that names key and operation but
// nothing secret.
func mustRefuse(t *testing.T, k keys.KEK, what string, blob []byte, c keys.Context) {
	t.Helper()
	_, err := k.Unwrap(t.Context(), blob, c)
	var e *keys.Error
	if !errors.As(err, &e) || e.Class != keys.ClassData || e.Op != keys.OpUnwrap || e.Key != k.Identity() {
		t.Errorf("%s: Unwrap = %v, want a data error that names key and operation", what, err)
		return
	}
	if strings.Contains(err.Error(), string(secret)) {
		t.Errorf("%s: the error holds the plaintext", what)
	}
}
