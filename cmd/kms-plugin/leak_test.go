package main

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/test/awsenv"
	"kms-plugin.io/test/fakekms"
)

// secrets are what must not leave the process, by kind.
type secrets map[string][][]byte

// scenario has a daemon do what it does in its life: seal, open, restart, open
// what is not in memory, refuse, fail in an outage.
func scenario(t *testing.T, more string) (*served, secrets) {
	t.Helper()
	cloud, err := fakekms.Start(fakekms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	arn := cloud.CreateKey("eu-west-1", fakekms.KeyOptions{})
	s := newAWS(t, cloud, arn, more)
	found := secrets{"secret access key": {credential(t, cloud)}}
	var stored []*kmsapi.DecryptRequest
	for range 20 {
		seed := make([]byte, envelope.SeedSize)
		if _, err := rand.Read(seed); err != nil {
			t.Fatal(err)
		}
		r, err := s.kms().Encrypt(t.Context(), &kmsapi.EncryptRequest{Uid: "leak", Plaintext: seed})
		if err != nil {
			t.Fatal(err)
		}
		found["seed"] = append(found["seed"], seed)
		stored = append(stored, &kmsapi.DecryptRequest{Uid: "leak", KeyId: r.KeyId, Ciphertext: r.Ciphertext, Annotations: r.Annotations})
	}
	local, encoded := localKEK(t, cloud, arn, stored[0].Annotations[envelope.AnnotationKey])
	sealing, err := hkdf.Key(sha256.New, local, nil, "kms-plugin.io/local-kek/seal/v1", 32)
	if err != nil {
		t.Fatal(err)
	}
	found["local KEK"], found["local KEK in JSON"], found["its sealing key"] = [][]byte{local}, [][]byte{encoded}, [][]byte{sealing}
	s.restart()
	for _, r := range stored {
		if _, err := s.kms().Decrypt(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	bad := &kmsapi.DecryptRequest{Uid: "leak", KeyId: stored[0].KeyId, Annotations: stored[0].Annotations, Ciphertext: bytes.Clone(stored[0].Ciphertext)}
	bad.Ciphertext[len(bad.Ciphertext)-1] ^= 1
	if _, err := s.kms().Decrypt(t.Context(), bad); err == nil {
		t.Error("a changed ciphertext opens")
	}
	cloud.Refuse()
	s.until("degraded")
	cloud.Listen()
	for _, token := range cloud.Tokens("default") { // of both lives of the daemon, and of this test
		found["session token"] = append(found["session token"], []byte(token))
	}
	return s, found
}

func newAWS(t *testing.T, cloud *fakekms.Server, arn, more string) *served {
	t.Helper()
	s := &served{t: t, environment: []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI=" + cloud.CredentialsURL("default"),
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "GOTRACEBACK=crash"}}
	s.place()
	s.keys = fmt.Sprintf("- {name: k, role: write, awskms: {keyARN: %q, endpoint: %q}}\n", arn, cloud.URL())
	s.write("probe: {interval: 200ms}\nlogLevel: debug\n" + more)
	s.start()
	return s
}

// credential is the secret access key that the daemon gets.
func credential(t *testing.T, cloud *fakekms.Server) []byte {
	t.Helper()
	resp, err := http.Get(cloud.CredentialsURL("default"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var c struct{ SecretAccessKey string }
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil || len(c.SecretAccessKey) < 16 {
		t.Fatalf("credential of the fake: %v", err)
	}
	return []byte(c.SecretAccessKey)
}

// localKEK has the fake unwrap the local KEK of a header.
func localKEK(t *testing.T, cloud *fakekms.Server, arn string, header []byte) (raw, encoded []byte) {
	t.Helper()
	h, err := envelope.Parse(header)
	if err != nil {
		t.Fatal(err)
	}
	awsenv.Clear(t)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", cloud.CredentialsURL("default"))
	kek, err := awskms.New(t.Context(), awskms.Config{KeyARN: arn, Endpoint: cloud.URL()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	u, err := kek.Unwrap(ctx, h.Wrapped, keys.NewContext("c", keys.BlobLocalKEK, nil))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := envelope.ParsePlain(keys.BlobLocalKEK, u.Plaintext)
	if err != nil {
		t.Fatal(err)
	}
	return plain, []byte(base64.StdEncoding.EncodeToString(u.Plaintext))
}

func (s *served) kms() kmsapi.KeyManagementServiceClient {
	s.t.Helper()
	conn, err := grpc.NewClient("unix://"+s.dir+"/run/s", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return kmsapi.NewKeyManagementServiceClient(conn)
}

// forms of a secret that a careless line would show.
func forms(b []byte) map[string][]byte {
	return map[string][]byte{
		"raw": b, "hex": []byte(hex.EncodeToString(b)), "HEX": []byte(strings.ToUpper(hex.EncodeToString(b))),
		"base64": []byte(base64.RawStdEncoding.EncodeToString(b)), "base64url": []byte(base64.RawURLEncoding.EncodeToString(b)),
		"decimal": []byte(strings.Trim(fmt.Sprint(b), "[]")), "quoted": []byte(strings.Trim(fmt.Sprintf("%q", b), `"`)),
	}
}

// Nothing that the daemon writes or shows holds a secret: log, metrics, audit
// log, state, last good configuration, and what errors say to callers.
func TestNoSecretLeaves(t *testing.T) {
	s, found := scenario(t, "")
	shown := map[string][]byte{"metrics": []byte(s.metrics())}
	_ = s.stop()
	shown["log"] = []byte(s.log.String())
	err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			shown[path], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(shown) < 6 || !bytes.Contains(shown[s.dir+"/log/audit"], []byte(`"op":"decrypt"`)) && !bytes.Contains(shown[s.dir+"/log/audit"], []byte(`"op":"Decrypt"`)) {
		t.Fatalf("too little was written to be searched: %d files\n%s", len(shown), shown[s.dir+"/log/audit"])
	}
	for where, data := range shown {
		found.mustNotBeIn(t, where, data)
	}
}

func (found secrets) mustNotBeIn(t *testing.T, where string, data []byte) {
	t.Helper()
	for kind, all := range found {
		for _, secret := range all {
			for form, b := range forms(secret) {
				if bytes.Contains(data, b) {
					t.Errorf("%s holds a %s (%s)", where, kind, form)
				}
			}
		}
	}
}
