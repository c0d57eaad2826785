package keys_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"kms-plugin.io/pkg/keys"
)

const plain = "the-very-secret-bytes-of-a-seed!"

// mustHide fails if text holds the secret in any form a formatter makes of it.
func mustHide(t *testing.T, what, text string) {
	t.Helper()
	decimal := strings.Trim(fmt.Sprint([]byte(plain)), "[]")
	for _, form := range []string{
		plain[:8], hex.EncodeToString([]byte(plain))[:8], strings.ToUpper(hex.EncodeToString([]byte(plain)))[:8],
		base64.StdEncoding.EncodeToString([]byte(plain))[:8], decimal[:11], strings.ReplaceAll(decimal, " ", ",")[:11], "0x74, 0x68", "74 68",
	} {
		if strings.Contains(text, form) {
			t.Errorf("%s shows the secret: %s", what, text)
			return
		}
	}
	if !strings.Contains(text, "REDACTED") {
		t.Errorf("%s = %q, want REDACTED", what, text)
	}
}

// holder is what a careless log line prints.
type holder struct {
	Name string
	Seed keys.Secret
	Ptr  *keys.Secret
	Many []keys.Secret
	By   map[string]keys.Secret
	Any  any
}

func carriers() map[string]any {
	s := keys.Secret(plain)
	return map[string]any{
		"value": s, "pointer": &s, "slice": []keys.Secret{s}, "array": [1]keys.Secret{s}, "map": map[string]keys.Secret{"a": s},
		"struct":            holder{"n", s, &s, []keys.Secret{s}, map[string]keys.Secret{"a": s}, s},
		"pointer to struct": &holder{Seed: s},
		"unwrapped":         keys.Unwrapped{Plaintext: s, Material: "m"},
	}
}

// Package fmt never asks a Formatter about %w, nor about an unexported field of
// another type: go vet finds the first, and no type of ours has the second.
func TestSecretIsNotFormatted(t *testing.T) {
	for name, v := range carriers() {
		for _, verb := range strings.Fields("%v %+v %#v %s %q %+q %x %X %#x %d %o %b %c %U %08b %-5s %10.3x %t %e") {
			mustHide(t, name+" with "+verb, fmt.Sprintf(verb, v))
		}
		mustHide(t, name+" as an argument too many", fmt.Sprintf(strings.Repeat("-", 1), v))
		mustHide(t, name+" with Sprint", fmt.Sprint(v))
		mustHide(t, name+" with Sprintln", fmt.Sprintln("x", v))
		mustHide(t, name+" in an error", fmt.Errorf("seal %v: %w", v, errors.New("x")).Error())
	}
	for _, s := range []keys.Secret{nil, {}} {
		if got := fmt.Sprintf("%x", s); got != "REDACTED" {
			t.Errorf("an empty secret prints %q: its length shows", got)
		}
	}
}

func TestSecretIsNotEncoded(t *testing.T) {
	for name, v := range carriers() {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		mustHide(t, name+" as JSON", string(b))
	}
	b, err := xml.Marshal(keys.Secret(plain))
	if err != nil {
		t.Fatal(err)
	}
	mustHide(t, "XML", string(b))
}

func TestSecretIsNotLogged(t *testing.T) {
	for name, v := range carriers() {
		var out bytes.Buffer
		for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
			out.Reset()
			slog.New(h).Info("m", "v", v)
			mustHide(t, fmt.Sprintf("%s with %T", name, h), out.String())
			out.Reset()
			slog.New(h).With("v", v).WithGroup("g").Info("m", slog.Group("h", "v", v))
			mustHide(t, fmt.Sprintf("%s in a group with %T", name, h), out.String())
		}
	}
	if got := keys.Secret(plain).LogValue(); got.Kind() != slog.KindString || got.String() != "REDACTED" {
		t.Errorf("LogValue = %v", got)
	}
}

func TestDestroy(t *testing.T) {
	backing := []byte(plain)
	keys.Secret(backing).Destroy()
	if !bytes.Equal(backing, make([]byte, len(plain))) {
		t.Errorf("Destroy left %q", backing)
	}
	keys.Secret(nil).Destroy()
}
