package awskms_test

import (
	"encoding/json"
	"errors"
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

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/test/fakekms"
)

// handedOut asks the fake for a credential, as a source of another kind would.
func handedOut(t *testing.T, s *fakekms.Server) map[string]string {
	t.Helper()
	resp, err := http.Get(s.CredentialsURL("default"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out := map[string]string{}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// instance is an IMDS. It counts requests without a token, which version 1 would
// have answered.
type instance struct {
	*httptest.Server
	v1, status atomic.Int64
}

func newIMDS(t *testing.T, s *fakekms.Server) *instance {
	t.Helper()
	i := &instance{}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case i.status.Load() != 0:
			w.WriteHeader(int(i.status.Load()))
		case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
			fmt.Fprint(w, "token")
		case r.Header.Get("X-Aws-Ec2-Metadata-Token") != "token":
			i.v1.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/latest/meta-data/iam/security-credentials/":
			fmt.Fprint(w, "node-role")
		case r.URL.Path == "/latest/meta-data/iam/security-credentials/node-role":
			c := handedOut(t, s)
			c["Code"] = "Success"
			_ = json.NewEncoder(w).Encode(c)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(i.Close)
	return i
}

// stsServer answers AssumeRoleWithWebIdentity, or with a status and a code.
func stsServer(t *testing.T, s *fakekms.Server, status *atomic.Int64, code string) *httptest.Server {
	t.Helper()
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "text/xml")
		if n := status.Load(); n != 0 {
			w.WriteHeader(int(n))
			fmt.Fprintf(w, `<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>no</Message></Error></ErrorResponse>`, code)
			return
		}
		if !strings.Contains(string(body), "WebIdentityToken=jwt-of-the-node") {
			t.Errorf("STS was asked %s", body)
		}
		c := handedOut(t, s)
		fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`, c["AccessKeyId"], c["SecretAccessKey"], c["Token"], c["Expiration"])
	}))
	t.Cleanup(h.Close)
	return h
}

func put(t *testing.T, name, data string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// must wrap once and tell kind and source.
func mustWrap(t *testing.T, k *awskms.KEK, kind, source string) {
	t.Helper()
	if _, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound); err != nil {
		t.Errorf("Wrap = %v", err)
	}
	if c := k.Credential(); c.Kind != kind || c.Source != source || c.Err != nil || time.Until(c.Expires) < 50*time.Minute {
		t.Errorf("described as %+v, want %s from %s", c, kind, source)
	}
}

func mustFail(t *testing.T, k *awskms.KEK, class keys.Class, text string) {
	t.Helper()
	_, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound)
	if keys.ClassOf(err) != class || !strings.Contains(err.Error(), text) {
		t.Errorf("Wrap = %v, want class %s and %q", err, class, text)
	}
}

func TestInstanceRole(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	imds := newIMDS(t, s)
	clear(t)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.URL)
	// A proxy for the key is none for the metadata service.
	c := awskms.Config{KeyARN: arn, Endpoint: s.URL()}
	k, err := awskms.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	mustWrap(t, k, "instance-role", imds.URL)
	c.Proxy = "http://127.0.0.1:1"
	if k, err = awskms.New(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	mustFail(t, k, keys.ClassOutage, "127.0.0.1:1")
	if d := k.Credential(); d.Expires.IsZero() {
		t.Errorf("the metadata service was asked by the proxy: %+v", d)
	}
	// No version 1, whatever the server says to version 2; no role at all.
	for status, class := range map[int]keys.Class{http.StatusNotFound: keys.ClassCredential, http.StatusForbidden: keys.ClassCredential, http.StatusMethodNotAllowed: keys.ClassCredential,
		http.StatusServiceUnavailable: keys.ClassOutage} {
		imds.status.Store(int64(status))
		mustFail(t, kek(t, s, arn), class, "get credentials")
	}
	imds.Close()
	mustFail(t, kek(t, s, arn), keys.ClassOutage, "get credentials")
	if n := imds.v1.Load(); n != 0 {
		t.Errorf("%d requests of version 1", n)
	}
}

func TestWebIdentity(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	token := put(t, "token", "jwt-of-the-node", 0o600)
	setup := func(status int, code string) {
		var st atomic.Int64
		st.Store(int64(status))
		clear(t)
		t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token)
		t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/node")
		t.Setenv("AWS_ENDPOINT_URL_STS", stsServer(t, s, &st, code).URL)
	}
	setup(0, "")
	mustWrap(t, kek(t, s, arn), "web-identity", token)
	for code, c := range map[string]struct {
		status int
		class  keys.Class
	}{
		"AccessDenied":          {403, keys.ClassCredential},
		"InvalidIdentityToken":  {400, keys.ClassCredential},
		"ExpiredTokenException": {400, keys.ClassCredential},
		"IDPCommunicationError": {400, keys.ClassOutage},
		"Throttling":            {400, keys.ClassOutage},
		"InternalFailure":       {500, keys.ClassOutage},
	} {
		setup(c.status, code)
		k := kek(t, s, arn)
		eventually(t, func() error { // STS is asked again before it counts
			_, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound)
			if strings.Contains(err.Error(), "deadline") {
				return err
			}
			if keys.ClassOf(err) != c.class {
				t.Errorf("%s: Wrap = %v, want class %s", code, err, c.class)
			}
			return nil
		})
	}
	setup(0, "")
	token = filepath.Join(t.TempDir(), "gone")
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token)
	mustFail(t, kek(t, s, arn), keys.ClassCredential, "no such file")
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// answerOf is what a credential_process prints.
func answerOf(t *testing.T, s *fakekms.Server) string {
	t.Helper()
	answer, err := s.ProcessAnswer("default")
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// What Roles Anywhere's helper does: print a credential. Nothing of what a helper
// prints is in any error.
func TestCredentialProcess(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	answer := answerOf(t, s)
	with := func(script string) *awskms.KEK {
		t.Helper()
		helper := put(t, "signing_helper", "#!/bin/sh\n"+script, 0o700)
		clear(t)
		t.Setenv("AWS_CONFIG_FILE", put(t, "config", "[default]\ncredential_process = "+helper+" credential-process --private-key /etc/secret.key\n", 0o600))
		return kek(t, s, arn)
	}
	mustWrap(t, with("echo '"+answer+"'"), "process", "signing_helper")
	mustFail(t, with("echo AccessDenied >&2; exit 1"), keys.ClassCredential, "exit status 1")
	mustFail(t, with(`echo '{"Version":1,"AccessKeyId":"a","SecretAccessKey":"hunter2hunter2"}'`), keys.ClassCredential, "long-lived static one")
	for _, bad := range []string{`echo '{"SecretAccessKey":"hunter2hunter2"'`, `echo hunter2hunter2`, `echo '{"Version":2,"SecretAccessKey":"hunter2hunter2"}'`} {
		k := with(bad)
		_, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound)
		if keys.ClassOf(err) != keys.ClassCredential || strings.Contains(err.Error(), "hunter2") || strings.Contains(fmt.Sprint(k.Credential().Err), "hunter2") {
			t.Errorf("%s: Wrap = %v", bad, err)
		}
	}
}

// The access key that would silently win is refused before anything is asked, and
// one that nobody would take is not.
func TestStaticKeysThatWouldWin(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	const static = "aws_access_key_id=AKIAX\naws_secret_access_key=hunter2hunter2\n"
	for name, c := range map[string]struct {
		env    map[string]string
		config string // of the shared configuration file
		want   string // "" is fine
		kind   string
	}{
		"environment before web identity":      {map[string]string{"AWS_ACCESS_KEY_ID": "AKIAX", "AWS_SECRET_ACCESS_KEY": "x", "AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": "arn:aws:iam::1:role/r"}, "", "access key in the environment", ""},
		"environment with a session token":     {map[string]string{"AWS_ACCESS_KEY_ID": "ASIAX", "AWS_SECRET_ACCESS_KEY": "x", "AWS_SESSION_TOKEN": "t"}, "", "access key in the environment", ""},
		"profile before the container":         {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": s.CredentialsURL("default")}, "[default]\n" + static, `access key of profile "default"`, ""},
		"profile with a session token":         {nil, "[default]\n" + static + "aws_session_token=t\n", `access key of profile "default"`, ""},
		"profile under a role":                 {nil, "[default]\nrole_arn=arn:aws:iam::1:role/r\nsource_profile=base\n[profile base]\n" + static, `access key of profile "base", source of arn:aws:iam::1:role/r`, ""},
		"profile that is its own source":       {nil, "[default]\nrole_arn=arn:aws:iam::1:role/r\nsource_profile=default\n" + static, `access key of profile "default", source of`, ""},
		"web identity before the profile":      {map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": "arn:aws:iam::1:role/r"}, "[default]\n" + static, "", "web-identity"},
		"profile that is not used":             {nil, "[profile other]\n" + static, "", "instance-role"},
		"role over the instance's":             {nil, "[default]\nrole_arn=arn:aws:iam::1:role/r\ncredential_source=Ec2InstanceMetadata\n", "", "assume-role"},
		"half a credential in the environment": {map[string]string{"AWS_ACCESS_KEY_ID": "AKIAX"}, "", "", "instance-role"},
	} {
		clear(t)
		for k, v := range c.env {
			t.Setenv(k, v)
		}
		if c.config != "" {
			t.Setenv("AWS_CONFIG_FILE", put(t, "config", c.config, 0o600))
		}
		k, err := awskms.New(t.Context(), awskms.Config{KeyARN: arn, Endpoint: s.URL()})
		var ce *awskms.ConfigError
		if c.want != "" && (!errors.As(err, &ce) || !strings.Contains(err.Error(), c.want) || !strings.Contains(ce.Hint(), "allowStaticCredentials: true") || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: New = %v, want %q", name, err, c.want)
		}
		if c.want == "" && (err != nil || k.Credential().Kind != c.kind) {
			t.Errorf("%s: New = %v, want kind %s", name, err, c.kind)
		}
		if c.want == "" {
			continue
		}
		if k, err = awskms.New(t.Context(), awskms.Config{KeyARN: arn, Endpoint: s.URL(), AllowStaticCredentials: true}); err != nil || k.Credential().Kind == "" {
			t.Errorf("%s, allowed: New = %v", name, err)
		}
	}
}

// A credential that ends in the middle of calls: with a keeper nobody notices.
func TestCredentialEndsWhileCallsGoOn(t *testing.T) {
	s := start(t, fakekms.Config{})
	s.SetCredentials("default", 3*time.Second, false)
	k := kek(t, s, s.CreateKey("eu-west-1", fakekms.KeyOptions{}))
	var renewed atomic.Int64
	go k.KeepCredential(t.Context(), func() { renewed.Add(1) })
	for end := time.Now().Add(time.Minute); renewed.Load() < 5; {
		if _, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatalf("renewed %d times", renewed.Load())
		}
	}
	// The role is withdrawn: served until the end, then denied with the cause.
	s.SetCredentials("default", 3*time.Second, true)
	eventually(t, func() error {
		_, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound)
		if err == nil {
			return errors.New("still served")
		}
		if keys.ClassOf(err) != keys.ClassCredential || !strings.Contains(err.Error(), "role withdrawn") {
			t.Errorf("Wrap = %v", err)
		}
		return nil
	})
	s.SetCredentials("default", time.Hour, false)
	eventually(t, func() error {
		_, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound)
		return err
	})
	// Ended by AWS before its time: renewed because the KMS refuses it.
	s.ExpireCredentials("default")
	if _, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound); keys.ClassOf(err) != keys.ClassCredential {
		t.Errorf("Wrap = %v", err)
	}
	eventually(t, func() error {
		_, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound)
		return err
	})
}
