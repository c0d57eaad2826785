package custody_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/custody"
	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

func TestHostileInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		r := ring(t, write("prod", c))
		other := start(t, r, "")
		good, second := mustSeal(t, other), mustSeal(t, other)
		sleep(61 * time.Second)
		foreign := start(t, ringFor(t, "other-cluster", keys.WrapLocalKEK, write("prod", c)), "")
		alien := mustSeal(t, foreign)
		direct := start(t, ringFor(t, "prod", keys.WrapDirect, write("prod", c)), "")
		seedBlob := mustSeal(t, direct)
		header := good.Annotations[envelope.AnnotationKey]
		with := func(change func(*plugin.Sealed)) plugin.Sealed {
			s := good
			s.Ciphertext = bytes.Clone(good.Ciphertext)
			s.Annotations = map[string][]byte{envelope.AnnotationKey: bytes.Clone(header)}
			change(&s)
			return s
		}
		edit := func(change func(*envelope.Header)) plugin.Sealed {
			h, err := envelope.Parse(header)
			if err != nil {
				t.Fatal(err)
			}
			change(h)
			raw, err := h.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			return with(func(s *plugin.Sealed) {
				s.Annotations[envelope.AnnotationKey] = raw
				s.KeyID = keys.KeyID("prod", h.Facts("prod"))
			})
		}
		probe := envelope.MarshalPlain(keys.BlobProbe, make([]byte, 32))
		wrapAs := func(typ keys.BlobType, plain keys.Secret) []byte {
			w, err := c.Wrap(t.Context(), plain, keys.NewContext("prod", typ, nil))
			if err != nil {
				t.Fatal(err)
			}
			return w.Blob
		}
		for name, tc := range map[string]struct {
			s    plugin.Sealed
			want error
		}{
			"no annotation":        {with(func(s *plugin.Sealed) { s.Annotations = nil }), keys.ErrMalformed},
			"unknown annotation":   {with(func(s *plugin.Sealed) { s.Annotations["x.example.com"] = nil }), keys.ErrMalformed},
			"key_id of nobody":     {with(func(s *plugin.Sealed) { s.KeyID = "nobody" }), keys.ErrMalformed},
			"key_id of others":     {with(func(s *plugin.Sealed) { s.KeyID = "prod:" + strings.Repeat("0", 32) }), keys.ErrContradiction},
			"ciphertext swapped":   {with(func(s *plugin.Sealed) { s.Ciphertext = seedBlob.Ciphertext }), keys.ErrMalformed},
			"ciphertext flipped":   {with(func(s *plugin.Sealed) { s.Ciphertext[9] ^= 1 }), keys.ErrContradiction},
			"header flipped":       {with(func(s *plugin.Sealed) { s.Annotations[envelope.AnnotationKey][60] ^= 1 }), nil},
			"header of another":    {with(func(s *plugin.Sealed) { s.Annotations = seedBlob.Annotations }), nil},
			"another cluster":      {alien, keys.ErrContradiction},
			"unknown KEK":          {edit(func(h *envelope.Header) { h.Identity = "test:zzz" }), keys.ErrUnknownKey},
			"other context":        {edit(func(h *envelope.Header) { h.Context[0] ^= 1 }), keys.ErrUnknownKey},
			"generation lied":      {edit(func(h *envelope.Header) { h.Generation = 9 }), nil},
			"material lied":        {edit(func(h *envelope.Header) { h.Material = "m9" }), keys.ErrContradiction},
			"local KEK id lied":    {edit(func(h *envelope.Header) { h.LocalKEK[0] ^= 1 }), keys.ErrContradiction},
			"stanza replaced":      {edit(func(h *envelope.Header) { h.Wrapped = []byte("m1|junk") }), nil},
			"probe as local KEK":   {edit(func(h *envelope.Header) { h.Wrapped = wrapAs(keys.BlobProbe, probe) }), nil},
			"probe in local's ctx": {edit(func(h *envelope.Header) { h.Wrapped = wrapAs(keys.BlobLocalKEK, probe) }), keys.ErrMalformed},
			"seed as local KEK":    {edit(func(h *envelope.Header) { h.Wrapped = seedBlob.Ciphertext[2:] }), nil},
			"recipient added": {edit(func(h *envelope.Header) {
				h.Recipients = []envelope.Recipient{{Identity: "test:b", Wrapped: []byte("x")}}
			}), nil},
		} {
			for who, i := range map[string]*instance{"fresh": start(t, r, ""), "knows it": other} {
				if err := open(t.Context(), i, tc.s); err == nil || tc.want != nil && !errors.Is(err, tc.want) {
					t.Errorf("%s, %s: Open = %v, want %v", name, who, err, tc.want)
				}
			}
		}
		// A local KEK or a probe presented as a seed: never an answer.
		h, err := envelope.Parse(seedBlob.Annotations[envelope.AnnotationKey])
		if err != nil {
			t.Fatal(err)
		}
		local, err := envelope.Parse(header)
		if err != nil {
			t.Fatal(err)
		}
		for name, blob := range map[string][]byte{
			"local KEK as seed": local.Wrapped, "probe as seed": wrapAs(keys.BlobProbe, probe),
			"local KEK in seed's ctx": wrapAs(keys.BlobSeed, envelope.MarshalPlain(keys.BlobLocalKEK, make([]byte, 32))),
			"seed of another header":  wrapAs(keys.BlobSeed, envelope.MarshalPlain(keys.BlobSeed, make([]byte, 64))),
		} {
			s := plugin.Sealed{KeyID: keys.KeyID("prod", h.Facts("prod")), Ciphertext: envelope.Frame(keys.BlobSeed, blob), Annotations: seedBlob.Annotations}
			got, _, err := direct.Open(t.Context(), plugin.OpenRequest{KeyID: s.KeyID, Ciphertext: s.Ciphertext, Annotations: s.Annotations})
			if err == nil {
				t.Errorf("%s: opened %d bytes", name, len(got))
			}
		}
		// Two objects' ciphertexts under one header are both ours: they swap
		// freely at this layer, kube-apiserver's etcd key binds each to its place.
		mustOpen(t, other, second)
	})
}

func TestDirect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		r := ringFor(t, "prod", keys.WrapDirect, write("prod", c))
		i := start(t, r, "")
		s := mustSeal(t, i)
		mustOpen(t, start(t, r, ""), s)
		if n := len(i.Report().LocalKEKs); n != 0 {
			t.Errorf("wrapping direct keeps %d local KEKs in memory", n)
		}
		// Data of the other wrapping opens too.
		local := start(t, ring(t, write("prod", c)), "")
		l := mustSeal(t, local)
		if l.KeyID == s.KeyID {
			t.Error("both wrappings have one key_id")
		}
		mustOpen(t, i, l)
		mustOpen(t, local, s)

		c.rotate("m2")
		if _, err := i.Seal(t.Context(), seed); !errors.Is(err, keys.ErrNotReady) {
			t.Errorf("Seal by new material under the old key_id = %v, want ErrNotReady", err)
		}
		sleep(5 * time.Minute)
		next := mustSeal(t, i)
		if next.KeyID == s.KeyID {
			t.Error("key_id did not follow the rotation")
		}
		mustOpen(t, i, s)
	})
}

func TestContextTypes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud("a")
		i := start(t, ring(t, write("prod", c)), "")
		sleep(67 * time.Second)
		_ = i
		c.mu.Lock()
		defer c.mu.Unlock()
		if got := fmt.Sprint(c.bound); got != "[local-kek local-kek probe probe]" {
			t.Errorf("encryption contexts of the calls = %s", got)
		}
	})
}

// A probe carries the end of the audit log into the KMS, in both of its calls, and
// nothing else does. The blob that is kept for a key that only reads has none, so that
// a release which knows no anchors takes up the state file.
func TestAnchor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, other := newCloud("a"), newCloud("b")
		n, dir := 0, t.TempDir()
		w := &watcher{}
		i := startWith(t, w, custody.Config{Ring: ring(t, write("prod", c)), Tuning: tuning, StateDir: dir, Observer: w,
			Anchor: func() string { n++; return fmt.Sprint("anchor-", n) }})
		mustOpen(t, i, mustSeal(t, i))
		sleep(70 * time.Second)
		if got := strings.Join(c.anchors, "; "); got != "wrap probe anchor-1; unwrap probe anchor-1" {
			t.Fatalf("the KMS saw %q", got)
		}
		i.stop()
		c.mu.Lock()
		c.anchors, c.bound = nil, nil
		c.mu.Unlock()
		if raw, err := os.ReadFile(filepath.Join(dir, "state.json")); err != nil || strings.Contains(string(raw), "anchor") {
			t.Errorf("the state file is not as the release before reads it: %s, %v", raw, err)
		}
		startWith(t, w, custody.Config{Ring: ring(t, write("next", other), read("prod", c)), Tuning: tuning, StateDir: dir, Force: true, Observer: w})
		sleep(200 * time.Second)
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.anchors) > 0 || len(c.bound) < 2 || slices.ContainsFunc(c.bound, func(b string) bool { return b != "local-kek" }) {
			t.Errorf("the KMS saw %q, %v of a read key", c.anchors, c.bound)
		}
		if len(other.anchors) > 0 {
			t.Errorf("anchors %q without any", other.anchors)
		}
	})
}
