package awskms_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
)

const fuzzedARN = "arn:aws:kms:eu-west-1:111122223333:key/12345678-1234-1234-1234-123456789012"

// Whatever answers in the place of KMS: an error of a class, or what the key that was
// asked is said to have done, within the sizes that are kept.
func FuzzAnswer(f *testing.F) {
	clear(f)
	f.Setenv("AWS_ACCESS_KEY_ID", "AKIAX")
	f.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	var status int
	var code, body string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		if code != "" {
			w.Header().Set("X-Amzn-ErrorType", code)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	f.Cleanup(s.Close)
	k, err := awskms.New(context.Background(), awskms.Config{KeyARN: fuzzedARN, Endpoint: s.URL, AllowStaticCredentials: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(200), "", `{"KeyId":"`+fuzzedARN+`","CiphertextBlob":"AAAA"}`)
	f.Add(uint16(200), "", `{"KeyId":"`+fuzzedARN+`","Plaintext":"AAAA","KeyMaterialId":"m"}`)
	f.Add(uint16(200), "", `{"KeyId":"arn:aws:kms:eu-west-1:1:key/other","Plaintext":"AAAA"}`)
	f.Add(uint16(400), "AccessDeniedException", `{"message":"no"}`)
	f.Add(uint16(400), "", `{"__type":"com.amazonaws.kms#DisabledException","message":"off"}`)
	f.Add(uint16(503), "", "<html>")
	f.Fuzz(func(t *testing.T, n uint16, errorType, text string) {
		status, code, body = 200+int(n)%400, errorType, text
		if strings.ContainsAny(code, "\r\n\x00") {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		w, err := k.Wrap(ctx, make(keys.Secret, 37), bound)
		judged(t, "Wrap", err, len(w.Blob) > 0 && len(w.Blob) <= keys.MaxBlob)
		ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		u, err := k.Unwrap(ctx, []byte{1}, bound)
		judged(t, "Unwrap", err, len(u.Material) <= keys.MaxMaterial)
	})
}

func judged(t *testing.T, what string, err error, fits bool) {
	t.Helper()
	var e *keys.Error
	switch {
	case err == nil && !fits:
		t.Fatalf("%s answered with sizes that are not kept", what)
	case err != nil && (!errors.As(err, &e) || e.Class == keys.ClassNone):
		t.Fatalf("%s = %v, of no class", what, err)
	}
}

// Whatever a credential_process prints: a credential that ends, or an error of class
// credential that quotes nothing of it.
func FuzzCredentialProcess(f *testing.F) {
	clear(f)
	dir := f.TempDir()
	printed, config := filepath.Join(dir, "printed"), filepath.Join(dir, "config")
	if err := os.WriteFile(config, []byte("[default]\ncredential_process = /bin/cat "+printed+"\n"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Setenv("AWS_CONFIG_FILE", config)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"__type":"AccessDeniedException"}`))
	}))
	f.Cleanup(s.Close)
	const secret = "hunter2hunter2hunter2"
	f.Add(`{"Version":1,"AccessKeyId":"a","SecretAccessKey":"` + secret + `","SessionToken":"t","Expiration":"2099-01-01T00:00:00Z"}`)
	f.Add(`{"Version":1,"AccessKeyId":"a","SecretAccessKey":"` + secret + `"}`)
	f.Add(`{"Version":1,"AccessKeyId":"a","SecretAccessKey":"` + secret + `","Expiration":"` + secret + `"}`)
	f.Add(secret)
	f.Fuzz(func(t *testing.T, output string) {
		if err := os.WriteFile(printed, []byte(output), 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := awskms.New(t.Context(), awskms.Config{KeyARN: fuzzedARN, Endpoint: s.URL})
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.Wrap(t.Context(), make(keys.Secret, 37), bound)
		c := k.Credential()
		switch class := keys.ClassOf(err); {
		case class == keys.ClassAuthorization && c.Expires.IsZero():
			t.Fatal("a credential that does not end was used")
		case class != keys.ClassAuthorization && class != keys.ClassCredential:
			t.Fatalf("Wrap = %v", err)
		case strings.Contains(err.Error(), secret) || strings.Contains(c.Source, secret):
			t.Fatalf("the secret is told: %v", err)
		}
	})
}
