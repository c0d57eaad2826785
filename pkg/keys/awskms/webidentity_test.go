package awskms_test

import (
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"kms-plugin.io/pkg/keys/awskms"
)

// jwt is a token with these claims, and a signature that must never be seen.
func jwt(claims string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode([]byte(claims)) + ".hunter2hunter2"
}

const role = "arn:aws:iam::111122223333:role/node"

// webIdentity inspects with an environment, and a shared configuration file if any.
func webIdentity(t testing.TB, env map[string]string, config string) (awskms.WebIdentity, error) {
	t.Helper()
	clear(t)
	for name, value := range env {
		t.Setenv(name, value)
	}
	if config != "" {
		file := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("AWS_CONFIG_FILE", file)
	}
	i, err := awskms.Inspect(t.Context(), awskms.Config{KeyARN: fuzzedARN, AllowStaticCredentials: true}, "")
	if err != nil {
		return awskms.WebIdentity{}, err
	}
	return i.WebIdentity()
}

// The token that counts is found where the SDK finds it.
func TestWebIdentityIsFound(t *testing.T) {
	claims := `{"iss":"https://issuer.example","exp":1700000000.5}`
	token := put(t, "token", jwt(claims)+"\n", 0o600)
	other := put(t, "other", jwt(`{"iss":"https://other.example"}`), 0o600)
	byEnv := map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": token, "AWS_ROLE_ARN": role}
	profile := func(name, file string) string {
		return "[" + name + "]\nrole_arn=" + role + "\nweb_identity_token_file=" + file + "\n"
	}
	const static = "aws_access_key_id=AKIAX\naws_secret_access_key=x\n"
	for name, c := range map[string]struct {
		env    map[string]string
		config string
		file   string
	}{
		"none":                           {nil, "", ""},
		"environment":                    {byEnv, "", token},
		"environment before the profile": {byEnv, profile("default", other), token},
		"profile":                        {nil, profile("default", token), token},
		"begin of a chain of roles":      {nil, "[default]\nrole_arn=" + role + "2\nsource_profile=middle\n[profile middle]\nrole_arn=" + role + "1\nsource_profile=base\n" + profile("profile base", token), token},
		"access key before it":           {map[string]string{"AWS_ACCESS_KEY_ID": "AKIAX", "AWS_SECRET_ACCESS_KEY": "x", "AWS_WEB_IDENTITY_TOKEN_FILE": token, "AWS_ROLE_ARN": role}, "", ""},
		"access key at the begin":        {nil, "[default]\nrole_arn=" + role + "2\nsource_profile=base\n" + profile("profile base", token) + static, ""},
		"instance at the begin":          {nil, "[default]\nrole_arn=" + role + "\ncredential_source=Ec2InstanceMetadata\n", ""},
		"another profile":                {nil, profile("profile other", token), ""},
	} {
		w, err := webIdentity(t, c.env, c.config)
		want := awskms.WebIdentity{}
		if c.file != "" {
			want = awskms.WebIdentity{File: token, Issuer: "https://issuer.example", Expires: time.Unix(1700000000, 0)}
		}
		if err != nil || w != want {
			t.Errorf("%s: WebIdentity = %+v, %v; want %+v", name, w, err, want)
		}
	}
}

// What is no token is an error that shows nothing of it.
func TestWebIdentityCannotBeRead(t *testing.T) {
	for name, c := range map[string]struct {
		data string
		want string
	}{
		"empty":            {"", "it is no JSON Web Token"},
		"two parts":        {"hunter2.hunter2", "it is no JSON Web Token"},
		"no base64":        {"hunter2.hunter2!.hunter2", "it is no JSON Web Token"},
		"no JSON":          {"hunter2.hunter2hunter2.hunter2", "it is no JSON Web Token"},
		"issuer no string": {jwt(`{"iss":7}`), "it is no JSON Web Token"},
		"end out of time":  {jwt(`{"exp":1e30}`), "it is no JSON Web Token"},
		"end before time":  {jwt(`{"exp":-1}`), "it is no JSON Web Token"},
		"too large":        {jwt(`{"iss":"` + strings.Repeat("h", 20000) + `"}`), "has more than 20000 bytes"},
	} {
		file := put(t, "token", c.data, 0o600)
		w, err := webIdentity(t, map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": file, "AWS_ROLE_ARN": role}, "")
		if err == nil || w != (awskms.WebIdentity{File: file}) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: WebIdentity = %+v, %v; want %q", name, w, err, c.want)
		}
		if errors.Is(err, awskms.ErrNoJWT) != (name != "too large") {
			t.Errorf("%s: %v is ErrNoJWT: %t", name, err, errors.Is(err, awskms.ErrNoJWT))
		}
	}
	dir := t.TempDir()
	for file, want := range map[string]error{filepath.Join(dir, "none"): fs.ErrNotExist, dir: nil} {
		_, err := webIdentity(t, map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": file, "AWS_ROLE_ARN": role}, "")
		if err == nil || want != nil && !errors.Is(err, want) || want == nil && !strings.Contains(err.Error(), "is not a regular file") {
			t.Errorf("%s: WebIdentity = %v, want %v", file, err, want)
		}
	}
}

// The token itself where its path is wanted: nothing begins, and nothing quotes it.
func TestTokenInPlaceOfItsPath(t *testing.T) {
	token := jwt(`{"iss":"https://issuer"}`)
	for name, c := range map[string]struct {
		env    map[string]string
		config string
	}{
		"environment": {map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": token, "AWS_ROLE_ARN": role}, ""},
		"profile":     {nil, "[default]\nrole_arn = " + role + "\nweb_identity_token_file = " + token + "\n"},
	} {
		_, err := webIdentity(t, c.env, c.config)
		var wrong *awskms.ConfigError
		if !errors.As(err, &wrong) || wrong.Hint() == "" || !strings.Contains(err.Error(), "a token stands where the path") || strings.Contains(err.Error()+wrong.Hint(), token[:12]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWebIdentityOfAServiceAccount(t *testing.T) {
	for claims, want := range map[string]bool{`{"kubernetes.io":{"namespace":"kube-system"}}`: true, `{"sub":"system:serviceaccount:a:b"}`: false} {
		w, err := webIdentity(t, map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": put(t, "token", jwt(claims), 0o600), "AWS_ROLE_ARN": role}, "")
		if err != nil || w.ServiceAccount != want {
			t.Errorf("%s: WebIdentity = %+v, %v", claims, w, err)
		}
	}
}

// A token is what another system wrote: claims within bounds, or an error that is
// one line without a word of it.
func FuzzWebIdentity(f *testing.F) {
	clear(f)
	file := filepath.Join(f.TempDir(), "token")
	f.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", file)
	f.Setenv("AWS_ROLE_ARN", role)
	i, err := awskms.Inspect(f.Context(), awskms.Config{KeyARN: fuzzedARN}, "")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(jwt(`{"iss":"https://a","exp":1700000000,"kubernetes.io":{}}`), false)
	f.Add(`{"iss":"https://a","exp":1e9}`, true)
	f.Add("a.b.c", false)
	f.Fuzz(func(t *testing.T, token string, claims bool) {
		if claims {
			token = jwt(token)
		}
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := i.WebIdentity()
		switch {
		case err != nil && strings.TrimSpace(err.Error()) != `token of the web identity in "`+file+`": it is no JSON Web Token` && !strings.Contains(err.Error(), "has more than"):
			t.Errorf("WebIdentity = %v", err)
		case err == nil && (w.Expires.Year() > 40000 || !utf8.ValidString(w.Issuer)):
			t.Errorf("WebIdentity = %+v", w)
		}
	})
}
