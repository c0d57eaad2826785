package custody_test

import (
	"errors"
	"log/slog"
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

func also(name string, c *cloud, with ...string) keys.Entry {
	e := write(name, c)
	e.AlsoWrapWith = with
	return e
}

func retired(name string, c *cloud) keys.Entry {
	e := read(name, c)
	e.Role = keys.RoleRetired
	return e
}

func header(t *testing.T, s plugin.Sealed) *envelope.Header {
	t.Helper()
	h, err := envelope.Parse(s.Annotations[envelope.AnnotationKey])
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func unwrapOf(t *testing.T, i *instance, name string) custody.KeyReport {
	t.Helper()
	for _, k := range i.Report().Keys {
		if k.Name == name {
			return k
		}
	}
	t.Fatalf("no key %q in the report", name)
	return custody.KeyReport{}
}

func (w *watcher) retiredOpens() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.retired
}

func TestAnyRecipientOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c, other := newCloud("a"), newCloud("b"), newCloud("c"), newCloud("other")
		i := start(t, ring(t, also("a", a, "b", "c"), read("b", b), read("c", c)), "")
		s := mustSeal(t, i)
		if h := header(t, s); len(h.Recipients) != 2 || h.Recipients[0].Identity != "test:b" || h.Recipients[1].Identity != "test:c" {
			t.Fatalf("recipients %+v, want b and c in the order of alsoWrapWith", h.Recipients)
		}
		for name, r := range map[string]*keys.Ring{
			"the key alone":      ring(t, write("a", a)),
			"one recipient":      ring(t, write("o", other), read("b", b)),
			"the other, retired": ring(t, write("o", other), retired("c", c)),
			"a recipient writes": ring(t, write("c", c)),
		} {
			if err := open(t.Context(), start(t, r, ""), s); err != nil {
				t.Errorf("%s: Open = %v", name, err)
			}
		}
		if err := open(t.Context(), start(t, ring(t, write("o", other)), ""), s); !errors.Is(err, keys.ErrUnknownKey) || !strings.Contains(err.Error(), "test:a") {
			t.Errorf("Open with none of them = %v, want ErrUnknownKey", err)
		}
		for name, away := range map[string]func(){
			"key and first recipient away":    func() { a.set(keys.ClassOutage, both...); b.set(keys.ClassOutage, both...) },
			"key disabled, recipient denied":  func() { a.set(keys.ClassKeyState, both...); b.set(keys.ClassAuthorization, both...) },
			"credential and a black hole":     func() { a.set(keys.ClassCredential, both...); b.silent(true) },
			"a wrap that is damaged, somehow": func() { a.set(keys.ClassData, keys.OpUnwrap); b.set(keys.ClassData, keys.OpUnwrap) },
		} {
			away()
			fresh := start(t, ring(t, write("o", other), read("a", a), read("b", b), read("c", c)), "")
			begun := time.Now()
			if err := open(t.Context(), fresh, s); err != nil || time.Since(begun) > plugin.CallTimeout {
				t.Errorf("%s: Open = %v after %s", name, err, time.Since(begun))
			}
			a.set(keys.ClassNone)
			b.set(keys.ClassNone)
			b.silent(false)
		}
		a.set(keys.ClassOutage, both...)
		b.set(keys.ClassKeyState, both...)
		c.set(keys.ClassAuthorization, both...)
		fresh := start(t, ring(t, write("o", other), read("a", a), read("b", b), read("c", c)), "")
		err := open(t.Context(), fresh, s)
		if keys.ClassOf(err) != keys.ClassOutage || !strings.Contains(err.Error(), `"a"`) || !strings.Contains(err.Error(), `"b"`) || !strings.Contains(err.Error(), `"c"`) {
			t.Errorf("Open with all denied or away = %v, want an outage that names each", err)
		}
	})
}

func TestRecipientsAreInTheKeyID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := newCloud("a"), newCloud("b"), newCloud("c")
		id := func(with ...string) string {
			return mustKeyID(t, start(t, ring(t, also("a", a, with...), read("b", b), read("c", c)), ""))
		}
		none, one, two := id(), id("b"), id("b", "c")
		if none == one || one == two || none == two {
			t.Errorf("key_ids %q, %q, %q: want three", none, one, two)
		}
		if got := id("c", "b"); got != two {
			t.Errorf("the order of the recipients changed key_id")
		}
	})
}

// Every stanza must hold the very local KEK of the header.
func TestForgedStanza(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newCloud("a"), newCloud("b")
		i := start(t, ring(t, also("a", a, "b"), read("b", b)), "")
		s := mustSeal(t, i)
		h := header(t, s)
		planted, err := b.Wrap(t.Context(), envelope.MarshalPlain(keys.BlobLocalKEK, make([]byte, 32)), keys.NewContext("prod", keys.BlobLocalKEK, nil))
		if err != nil {
			t.Fatal(err)
		}
		forge := func(wrapped []byte) plugin.Sealed {
			f := *h
			f.Recipients = slices.Clone(h.Recipients)
			f.Recipients[0].Wrapped = wrapped
			raw, err := f.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			return plugin.Sealed{KeyID: s.KeyID, Ciphertext: s.Ciphertext, Annotations: map[string][]byte{envelope.AnnotationKey: raw}}
		}
		a.set(keys.ClassOutage, both...)
		fresh := start(t, ring(t, write("b", b), read("a", a)), "")
		if err := open(t.Context(), fresh, forge(planted.Blob)); !errors.Is(err, keys.ErrContradiction) {
			t.Errorf("a planted local KEK = %v, want ErrContradiction", err)
		}
		if err := open(t.Context(), fresh, forge(h.Wrapped)); err == nil {
			t.Error("the stanza of another KEK opened")
		}
		a.set(keys.ClassNone)
		sleep(time.Minute)
		if err := open(t.Context(), fresh, forge(planted.Blob)); !errors.Is(err, keys.ErrContradiction) {
			t.Errorf("by the key, under a changed header = %v, want ErrContradiction: the seal covers all stanzas", err)
		}
		mustOpen(t, fresh, s)
	})
}

// A co-recipient that does not wrap: no key_id without it, and no silence.
func TestRecipientThatDoesNotWrap(t *testing.T) {
	for name, spoil := range map[string]func(b *cloud){
		"away":                func(b *cloud) { b.set(keys.ClassOutage, both...) },
		"denied":              func(b *cloud) { b.set(keys.ClassAuthorization, keys.OpWrap) },
		"wraps, unwraps not":  func(b *cloud) { b.set(keys.ClassAuthorization, keys.OpUnwrap) },
		"disabled":            func(b *cloud) { b.set(keys.ClassKeyState, both...) },
		"silent":              func(b *cloud) { b.silent(true) },
		"another key answers": func(b *cloud) { b.set(keys.ClassData, keys.OpUnwrap) },
	} {
		bubble(name, func(t *testing.T) {
			a, b := newCloud("a"), newCloud("b")
			spoil(b)
			first := start(t, ring(t, also("a", a, "b"), read("b", b)), "")
			sleep(10 * time.Second)
			if id, err := first.KeyID(); !errors.Is(err, keys.ErrNotReady) || !strings.Contains(err.Error(), `co-recipient "b"`) {
				t.Errorf("KeyID of a first start = %q, %v; want ErrNotReady that names b", id, err)
			}
			running := start(t, ring(t, write("a", a), read("b", b)), t.TempDir())
			old := mustSeal(t, running)
			sleep(11 * time.Minute)
			if err := running.Replace(ring(t, also("a", a, "b"), read("b", b)), tuning); err != nil {
				t.Fatal(err)
			}
			sleep(10 * time.Minute)
			if got := mustSeal(t, running).KeyID; got != old.KeyID {
				t.Errorf("key_id %q without its recipient, want the old one", got)
			}
			if n := running.w.count("activate", slog.LevelError); n != 1 {
				t.Errorf("it was told %d times, want once", n)
			}
			b.set(keys.ClassNone)
			b.silent(false)
			sleep(15 * time.Second)
			s := mustSeal(t, running)
			if s.KeyID == old.KeyID || mustKeyID(t, first) != s.KeyID || len(header(t, s).Recipients) != 1 {
				t.Errorf("key_id %q and %q once it wraps; old one %q", s.KeyID, mustKeyID(t, first), old.KeyID)
			}
			mustOpen(t, running, old)
			mustOpen(t, first, s)
		})(t)
	}
}

func (w *watcher) count(kind string, level slog.Level) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Kind == kind && e.Level == level {
			n++
		}
	}
	return n
}

// A retired key opens nothing that another healthy one opens; when it is needed, it
// is counted.
func TestRetiredRecipient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newCloud("a"), newCloud("b")
		was := start(t, ring(t, also("a", a, "b"), read("b", b)), "")
		s := mustSeal(t, was)
		was.stop()
		i := start(t, ring(t, write("b", b), retired("a", a)), t.TempDir())
		unwraps := a.count(keys.OpUnwrap)
		mustOpen(t, i, s) // asks b
		sleep(time.Minute)
		mustOpen(t, i, s) // from memory
		if n := i.w.retiredOpens(); n != 0 {
			t.Errorf("%d opens counted for a retired key that nothing needs", n)
		}
		fresh := start(t, ring(t, write("b", b), retired("a", a)), t.TempDir())
		mustOpen(t, fresh, s)
		if n := a.count(keys.OpUnwrap); n != unwraps && fresh.w.retiredOpens() != 0 {
			t.Error("the retired key was asked")
		}
		b.set(keys.ClassAuthorization, keys.OpUnwrap)
		sleep(2 * time.Minute)
		mustOpen(t, i, s)
		if n := i.w.retiredOpens(); n != 1 {
			t.Errorf("%d opens counted for a retired key that alone is healthy, want 1", n)
		}
		cold := start(t, ring(t, write("o", newCloud("o")), read("b", b), retired("a", a)), "")
		mustOpen(t, cold, s)
		if n := cold.w.retiredOpens(); n != 1 {
			t.Errorf("%d opens counted for a retired key that was really asked, want 1", n)
		}
		b.set(keys.ClassNone)
		var g *custody.GuardError
		if err := i.Replace(ring(t, write("b", b)), tuning); !errors.As(err, &g) {
			t.Errorf("dropping it within a day = %v, want a refusal", err)
		}
		if err := fresh.Replace(ring(t, write("b", b)), tuning); err != nil {
			t.Errorf("dropping it where nothing needed it: %v", err)
		}
		mustOpen(t, fresh, s)
	})
}

// A→{A,B}→A needs a higher generation, as every way back does.
func TestRecipientsAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, dir := newCloud("a"), newCloud("b"), t.TempDir()
		i := start(t, ring(t, write("a", a), read("b", b)), dir)
		sleep(11 * time.Minute)
		if err := i.Replace(ring(t, also("a", a, "b"), read("b", b)), tuning); err != nil {
			t.Fatal(err)
		}
		sleep(time.Minute)
		var g *custody.GuardError
		if err := i.Replace(ring(t, write("a", a), read("b", b)), tuning); !errors.As(err, &g) || !strings.Contains(g.Hint, "generation: 2") {
			t.Fatalf("without the recipient again = %v, want a refusal that asks for generation 2", err)
		}
		e := write("a", a)
		e.Generation = 2
		if err := i.Replace(ring(t, e, read("b", b)), tuning); err != nil {
			t.Fatal(err)
		}
		sleep(time.Minute)
		if h := header(t, mustSeal(t, i)); h.Generation != 2 || len(h.Recipients) != 0 {
			t.Errorf("header %+v", h)
		}
	})
}
