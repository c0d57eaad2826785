package plugin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

const seed = "the-very-secret-bytes-of-a-seed!"

// mustFail demands a code and a text, and that the text shows no seed.
func mustFail(t *testing.T, what string, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), text) {
		t.Errorf("%s = %v, want %s and %q", what, err, code, text)
	}
	mustHide(t, what, fmt.Sprint(err))
}

func mustHide(t *testing.T, what, text string) {
	t.Helper()
	for _, form := range []string{seed[:8], fmt.Sprintf("%x", seed)[:16], strings.Trim(fmt.Sprint([]byte(seed)), "[]")[:15]} {
		if strings.Contains(text, form) {
			t.Errorf("%s shows the seed: %s", what, text)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	b, j := newBackend(t), &journal{}
	c, _ := serve(t, b, j)
	s, err := c.Status(t.Context(), &kmsapi.StatusRequest{})
	if err != nil || s.GetVersion() != "v2" || s.GetHealthz() != "ok" || s.GetKeyId() != keyID {
		t.Fatalf("Status = %v, %v", s, err)
	}
	e, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "u1"})
	if err != nil || e.GetKeyId() != keyID || string(e.GetAnnotations()["v1.kms-plugin.io"]) != "header" || bytes.Contains(e.GetCiphertext(), []byte(seed)) {
		t.Fatalf("Encrypt = %v, %v", e, err)
	}
	if call, rpc := j.last(); call.Op != "encrypt" || call.UID != "u1" || call.KeyID != keyID || call.Err != nil || call.Detail.RequestID != "r1" || rpc != "Encrypt OK" {
		t.Errorf("recorded %+v, %q", call, rpc)
	}
	d, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: e.GetCiphertext(), Uid: "u2", KeyId: keyID, Annotations: e.GetAnnotations()})
	if err != nil || string(d.GetPlaintext()) != seed {
		t.Fatalf("Decrypt = %v, %v", d, err)
	}
	if call, rpc := j.last(); call.Op != "decrypt" || call.UID != "u2" || call.KeyID != keyID || call.Err != nil || call.Detail.KEK != "fake:1" || rpc != "Decrypt OK" {
		t.Errorf("recorded %+v, %q", call, rpc)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !bytes.Equal(b.seeds[0], make([]byte, 32)) {
		t.Error("the seed is still in memory after Encrypt")
	}
	mustHide(t, "journal", fmt.Sprint(j.calls, j.rpcs, j.log.String()))
}

// Every class of error arrives as its code at every door, with its text.
func TestCodesOverTheSocket(t *testing.T) {
	for _, o := range outcomes {
		if o.err == nil {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			b, j := newBackend(t), &journal{}
			b.keyID = func() (string, error) { return "", o.err }
			b.seal = func(context.Context, keys.Secret, *plugin.Sealed) error { return o.err }
			b.open = func(context.Context, plugin.OpenRequest, *keys.Secret) error { return o.err }
			c, _ := serve(t, b, j)
			_, err := c.Status(t.Context(), &kmsapi.StatusRequest{})
			mustFail(t, "Status", err, o.code, o.err.Error())
			_, err = c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "u"})
			mustFail(t, "Encrypt", err, o.code, o.err.Error())
			if call, rpc := j.last(); call.Op != "encrypt" || !errors.Is(call.Err, o.err) || rpc != "Encrypt "+o.code.String() {
				t.Errorf("recorded %+v, %q", call, rpc)
			}
			_, err = c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), Uid: "u", KeyId: keyID})
			mustFail(t, "Decrypt", err, o.code, o.err.Error())
			if call, rpc := j.last(); call.Op != "decrypt" || !errors.Is(call.Err, o.err) || rpc != "Decrypt "+o.code.String() {
				t.Errorf("recorded %+v, %q", call, rpc)
			}
		})
	}
}

// An error that a careless backend makes of the seed does not show it.
func TestErrorsHideTheSeed(t *testing.T) {
	b, j := newBackend(t), &journal{}
	b.seal = func(_ context.Context, s keys.Secret, sealed *plugin.Sealed) error {
		sealed.Detail.RequestID = "r9"
		return fmt.Errorf("seal %v %x %q: %w", s, s, s, keys.ErrNotReady)
	}
	c, _ := serve(t, b, j)
	_, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "u"})
	mustFail(t, "Encrypt", err, codes.Unavailable, "seal REDACTED REDACTED REDACTED: not ready")
	mustHide(t, "journal", j.text())
	if call, _ := j.last(); call.Detail.RequestID != "r9" || call.KeyID != "" {
		t.Errorf("recorded %+v, want the remote call of the failure and no key_id", call)
	}
}

func TestBadAnswersOfTheBackend(t *testing.T) {
	const limits = "the sealed seed is outside the limits of kube-apiserver"
	for name, change := range map[string]func(*plugin.Sealed){
		"no key_id":             func(s *plugin.Sealed) { s.KeyID = "" },
		"key_id too long":       func(s *plugin.Sealed) { s.KeyID = strings.Repeat("k", 1025) },
		"no ciphertext":         func(s *plugin.Sealed) { s.Ciphertext = nil },
		"ciphertext too long":   func(s *plugin.Sealed) { s.Ciphertext = make([]byte, 1025) },
		"annotations too large": func(s *plugin.Sealed) { s.Annotations = map[string][]byte{"a.b": make([]byte, 32<<10-2)} },
	} {
		b, j := newBackend(t), &journal{}
		b.seal = func(_ context.Context, _ keys.Secret, s *plugin.Sealed) error { change(s); return nil }
		c, _ := serve(t, b, j)
		_, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "u"})
		mustFail(t, name, err, codes.InvalidArgument, limits)
	}
	b, j := newBackend(t), &journal{}
	b.seal = func(_ context.Context, _ keys.Secret, s *plugin.Sealed) error {
		s.KeyID, s.Ciphertext = strings.Repeat("k", 1024), make([]byte, 1024)
		s.Annotations = map[string][]byte{"a.b": make([]byte, 32<<10-3)}
		return nil
	}
	c, _ := serve(t, b, j)
	if _, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "u"}); err != nil {
		t.Errorf("an answer of exactly the limits = %v", err)
	}
	for _, n := range []int{0, 31, 33} {
		b, j := newBackend(t), &journal{}
		out := keys.Secret(bytes.Repeat([]byte{7}, n))
		c, _ := serve(t, &fixed{b, out}, j)
		_, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), Uid: "u", KeyId: keyID})
		mustFail(t, "Decrypt", err, codes.InvalidArgument, fmt.Sprintf("what opened has %d bytes, a DEK seed has 32", n))
		if !bytes.Equal(out, make([]byte, n)) {
			t.Errorf("%d bytes that are no seed were not overwritten", n)
		}
	}
}

// fixed opens everything to the same bytes.
type fixed struct {
	*backend
	out keys.Secret
}

func (f *fixed) Open(context.Context, plugin.OpenRequest) (keys.Secret, plugin.Detail, error) {
	return f.out, plugin.Detail{}, nil
}

// audit.onFailure refuse: what is not recorded is not handed out.
func TestAuditFailureRefuses(t *testing.T) {
	b, j := newBackend(t), &journal{fail: errors.New("disk full")}
	out := keys.Secret(seed)
	c, _ := serve(t, &fixed{b, out}, j)
	const text = "not ready: audit.onFailure is refuse and the audit log cannot be written: disk full"
	e, err := c.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "u"})
	mustFail(t, "Encrypt", err, codes.Unavailable, text)
	d, err := c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: []byte("x"), Uid: "u", KeyId: keyID})
	mustFail(t, "Decrypt", err, codes.Unavailable, text)
	if e != nil || d != nil || !bytes.Equal(out, make([]byte, 32)) {
		t.Errorf("answers %v, %v; seed %x; want none, and the seed overwritten", e, d, []byte(out))
	}
	// The cause of the call comes before the audit's.
	_, err = c.Decrypt(t.Context(), &kmsapi.DecryptRequest{Uid: "u", KeyId: keyID})
	mustFail(t, "bad Decrypt", err, codes.InvalidArgument, "ciphertext is empty")
}
