package awskms

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// maxToken is what STS takes
// (https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html).
const maxToken = 20000

// ErrNoJWT is returned when the token of a web identity is no JSON Web Token. Of the
// token it says nothing: who has it is this node.
var ErrNoJWT = errors.New("it is no JSON Web Token")

// WebIdentity is what a token says by which somebody vouches for this node. Nobody
// has verified it, and the token itself is not in it.
type WebIdentity struct {
	File           string // "": the credential is not got with such a token
	Issuer         string
	Expires        time.Time // zero: it does not say
	ServiceAccount bool      // an API server made it, for a service account
}

// WebIdentity reads the token that the credential is got with, at once or at the
// begin of a chain of roles.
func (i *Inspector) WebIdentity() (WebIdentity, error) {
	if i.token == "" {
		return WebIdentity{}, nil
	}
	w := WebIdentity{File: i.token}
	data, err := readToken(i.token)
	if err != nil {
		return w, fmt.Errorf("token of the web identity: %w", err)
	}
	if err := w.parse(data); err != nil {
		return w, fmt.Errorf("token of the web identity in %q: %w", i.token, err)
	}
	return w, nil
}

func readToken(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%q is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err == nil && len(data) > maxToken {
		err = fmt.Errorf("%q has more than %d bytes", path, maxToken)
	}
	return string(data), err
}

// parse takes the claims out of a token (RFC 7519). Its errors quote nothing.
func (w *WebIdentity) parse(token string) error {
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		return ErrNoJWT
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ErrNoJWT
	}
	var claims struct {
		Issuer     string          `json:"iss"`
		Expires    float64         `json:"exp"` // seconds, also parts of them
		Kubernetes json.RawMessage `json:"kubernetes.io"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Expires < 0 || claims.Expires > 1<<40 {
		return ErrNoJWT
	}
	w.Issuer, w.ServiceAccount = claims.Issuer, claims.Kubernetes != nil
	if claims.Expires > 0 {
		w.Expires = time.Unix(int64(claims.Expires), 0)
	}
	return nil
}

// tokenFile is where the token of a web identity is, for a source of this kind; "" if
// it uses none.
func tokenFile(cfg aws.Config, kind string) string {
	env, profile := sources(cfg)
	switch {
	case kind == "web-identity" && env.WebIdentityTokenFilePath != "":
		return env.WebIdentityTokenFilePath
	case kind != "web-identity" && kind != "assume-role":
		return ""
	}
	p := &profile
	for p.Source != nil {
		p = p.Source
	}
	if p.Credentials.HasKeys() || p.CredentialSource != "" { // the SDK asks these first
		return ""
	}
	return p.WebIdentityTokenFile
}

// isToken says whether a path is a JSON Web Token by mistake: base64url of an object,
// which has no slash.
func isToken(path string) bool {
	return strings.HasPrefix(path, "eyJ") && !strings.Contains(path, "/")
}
