package doctor_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/pkg/keys/localfile"
	"kms-plugin.io/test/fakekms"
)

// front puts itself before the fake cloud: request and answer of an operation ("" is
// no operation of KMS) may be changed; nil changes nothing.
func (n *node) front(request, answer func(op string, r *http.Request, body map[string]any)) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), "TrentService.")
		edited := func(r *http.Request, from io.Reader, edit func(string, *http.Request, map[string]any)) []byte {
			data, _ := io.ReadAll(from) // what is cut off is no JSON
			body := map[string]any{}
			if edit == nil || len(data) > 0 && json.Unmarshal(data, &body) != nil {
				return data
			}
			edit(op, r, body)
			if len(data) > 0 {
				data, _ = json.Marshal(body) // it was JSON
			}
			return data
		}
		r.Body = io.NopCloser(bytes.NewReader(edited(r, r.Body, request)))
		got := httptest.NewRecorder()
		n.cloud.ServeHTTP(got, r)
		data := edited(r, got.Body, answer)
		for name, values := range got.Header() {
			w.Header()[name] = values
		}
		w.WriteHeader(got.Code)
		_, _ = w.Write(data) // the client may be gone
	}))
	n.t.Cleanup(web.Close)
	n.config = strings.Replace(n.config, "endpoint: \""+n.cloud.URL(), "endpoint: \""+web.URL, 1)
}

// static is a node with an access key in its environment, allowed to be used.
func (n *node) static(token string) {
	n.t.Setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
	n.t.Setenv("AWS_SECRET_ACCESS_KEY", "none")
	n.t.Setenv("AWS_SESSION_TOKEN", token)
	n.config = strings.Replace(n.config, "awskms: {", "awskms: {allowStaticCredentials: true, ", 1)
}

// late makes an operation answer once it has taken more than a third of the budget of
// 3 s: one attempt is lost, and the next takes its time.
func (n *node) late(op string) {
	n.cloud.SetFault(fakekms.Fault{Op: op, Kind: fakekms.Hang, Limit: 1})
	n.cloud.SetFault(fakekms.Fault{Op: op, Kind: fakekms.Latency, Latency: 200 * time.Millisecond})
}

// What a KMS does that is none, or is far away, and what a key is.
func TestWhatTheCloudDoesIsNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		wrong        func(n *node)
		check        string
		level        preflight.Level
		text, remedy string
	}{
		"context not bound": {func(n *node) {
			n.front(func(op string, _ *http.Request, body map[string]any) {
				if op == "Encrypt" || op == "Decrypt" {
					body["EncryptionContext"] = map[string]any{"kms-plugin-cluster": cluster}
				}
			}, nil)
		}, "kms-context", preflight.Problem, "opens under the encryption context of another", "does not bind the encryption context"},
		"other bytes": {func(n *node) {
			n.front(nil, func(op string, _ *http.Request, body map[string]any) {
				if plain, ok := body["Plaintext"].(string); ok && op == "Decrypt" {
					body["Plaintext"] = plain[4:8] + plain[:4] + plain[8:] // base64, and still of 3 bytes each
				}
			})
		}, "kms-roundtrip", preflight.Problem, "opens to other bytes", "do not use this key or endpoint"},
		"endpoint far away": {func(n *node) {
			var gets atomic.Int32
			n.front(func(op string, r *http.Request, _ map[string]any) {
				if op != "" || r.Method != http.MethodGet {
					return
				}
				switch gets.Add(1) { // the second look is the one that is timed
				case 2:
					<-r.Context().Done()
				case 3:
					time.Sleep(200 * time.Millisecond)
				}
			}, nil)
		}, "kms-reach", preflight.Warning, "kube-apiserver gives a whole call 3s", "in the region of this node"},
		"slow to wrap":   {func(n *node) { n.late("Encrypt") }, "kms-roundtrip", preflight.Warning, "kube-apiserver gives a call 3s", "quota"},
		"slow to unwrap": {func(n *node) { n.late("Decrypt") }, "kms-roundtrip", preflight.Warning, "kube-apiserver gives a call 3s", "quota"},
		"long-lived credential": {func(n *node) { n.static("") }, "credential", preflight.Warning,
			"a long-lived static credential from EnvConfigCredentials", "drop allowStaticCredentials"},
		"session without an end": {func(n *node) { n.static("token") }, "credential", preflight.OK, "which does not say when it ends", ""},
		"multi-Region key": {func(n *node) {
			n.arn = n.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{MultiRegion: true})
			n.cloud.SetPolicy(n.arn, fakekms.LeastPrivilege(cluster))
			n.configure(n.arn, "")
		}, "key-state", preflight.OK, "enabled, a multi-Region key, ", ""},
		"key of one region": {func(*node) {}, "key-state", preflight.OK, "enabled, a key of one region, ", ""},
		"material that ends": {func(n *node) {
			n.front(nil, func(op string, _ *http.Request, body map[string]any) {
				if of, ok := body["KeyMetadata"].(map[string]any); ok && op == "DescribeKey" {
					of["Origin"], of["ValidTo"] = "EXTERNAL", time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC).Unix()
				}
			})
		}, "key-state", preflight.Warning, "imported material ends at 2030-01-02T03:04:05Z", "without an end"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			tc.wrong(n)
			got := find(t, n.examine(), tc.check)
			if got.Level != tc.level || !strings.Contains(got.Message, tc.text) || !strings.Contains(got.Remedy, tc.remedy) {
				t.Errorf("%s is %s: %s\nhint: %s\nwant %s, %q, hint %q", tc.check, got.Level, got.Message, got.Remedy, tc.level, tc.text, tc.remedy)
			}
		})
	}
}

// webIdentity is a node whose credential is got with a token; claims "" is no token.
func (n *node) webIdentity(claims string) (token string) {
	n.t.Helper()
	token = filepath.Join(n.dir, "token")
	n.pod = filepath.Join(n.dir, "kube-apiserver.yaml")
	files := map[string]string{n.pod: "kind: Pod\nspec: {containers: [{name: kube-apiserver, args: [--service-account-issuer=https://prod.example]}]}\n"}
	if claims != "" {
		files[token] = "hunter2." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".hunter2"
	}
	for file, data := range files {
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	n.t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
	n.t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token)
	n.t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/node")
	n.t.Setenv("AWS_ENDPOINT_URL_STS", n.cloud.URL()) // which refuses it
	return token
}

// The token of a web identity is looked at before anybody is asked with it: one cause
// is one problem, and the token is in no report.
func TestWebIdentity(t *testing.T) {
	for name, tc := range map[string]struct {
		claims       string
		level        preflight.Level
		text, remedy string
		blocked      string // what the credential is skipped for
	}{
		"of this cluster": {`{"iss":"https://prod.example","exp":4102444800}`, preflight.Warning, `issued by "https://prod.example", the cluster that is served`, "instance role", ""},
		"of another":      {`{"iss":"https://other.example","exp":4102444800}`, preflight.OK, "which is not the cluster", "", ""},
		"without an end":  {`{"iss":"https://other.example"}`, preflight.OK, "which is not the cluster", "", ""},
		"expired":         {`{"iss":"https://other.example","exp":1000000000}`, preflight.Problem, "expired at 2001-09-09T01:46:40Z", "what renews it", "has expired"},
		"expired, circle": {`{"iss":"https://prod.example","exp":1000000000}`, preflight.Problem, "STS takes it no more; the token in ", "instance role", "has expired"},
		"no token":        {"", preflight.Problem, "no such file", "what writes it", "no token"},
		"something else":  {"hunter2", preflight.Warning, "it is no JSON Web Token", "what writes it", ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			token := n.webIdentity(tc.claims)
			r := n.examine()
			got := find(t, r, "web-identity")
			if got.Level != tc.level || !strings.Contains(got.Message, tc.text) || !strings.Contains(got.Message, token) || !strings.Contains(got.Remedy, tc.remedy) || got.Subject != "prod" {
				t.Errorf("%+v, want %s, %q, hint %q", got, tc.level, tc.text, tc.remedy)
			}
			c := find(t, r, "credential")
			if blocked := c.Level == preflight.Skipped && strings.Contains(c.Message, tc.blocked); blocked != (tc.blocked != "") || blocked && r.Problems != 1 {
				t.Errorf("%d problems, credential: %+v", r.Problems, c)
			}
			if strings.Contains(fmt.Sprint(r), "hunter2") {
				t.Errorf("the token is in the report: %+v", r)
			}
		})
	}
}

// A keyset in a file is looked at too, and warned of.
func TestLocalFile(t *testing.T) {
	n := newNode(t)
	keyset := filepath.Join(n.dir, "keyset")
	if err := localfile.Create(keyset); err != nil {
		t.Fatal(err)
	}
	n.config = n.config[:strings.Index(n.config, "keys:")] + "keys:\n- name: lab\n  role: write\n  localfile: {path: " + keyset + "}\n"
	r := n.examine()
	if c := find(t, r, "localfile"); c.Level != preflight.Warning || !strings.Contains(c.Message, keyset) {
		t.Errorf("localfile: %+v", c)
	}
	for _, name := range []string{"kms-roundtrip", "kms-context"} {
		if c := find(t, r, name); c.Level != preflight.OK {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if !r.Passed {
		t.Errorf("not passed: %+v", r.Checks)
	}
}
