package fakekms

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Statement is one statement of a key policy. Empty lists match everything.
type Statement struct {
	Deny          bool
	Principals    []string
	Actions       []string          // "kms:Encrypt"
	ContextEquals map[string]string // kms:EncryptionContext:<name> StringEquals
}

func (t Statement) matches(who, action string, context map[string]string) bool {
	if len(t.Principals) > 0 && !slices.Contains(t.Principals, who) || len(t.Actions) > 0 && !slices.Contains(t.Actions, action) {
		return false
	}
	for name, value := range t.ContextEquals {
		if context[name] != value {
			return false
		}
	}
	return true
}

// allowed evaluates a key policy: a denial wins, and with statements only what
// one of them allows is allowed.
func (k *key) allowed(who, action string, context map[string]string) bool {
	ok := len(k.policy) == 0
	for _, t := range k.policy {
		if !t.matches(who, action, context) {
			continue
		}
		if t.Deny {
			return false
		}
		ok = true
	}
	return ok
}

// LeastPrivilege is a key policy that gives every principal what kms-plugin needs
// for one cluster, and nothing else.
func LeastPrivilege(clusterID string) []Statement {
	return []Statement{
		{Actions: []string{"kms:Encrypt", "kms:Decrypt"}, ContextEquals: map[string]string{"kms-plugin-cluster": clusterID}},
		{Actions: []string{"kms:DescribeKey", "kms:GetKeyRotationStatus"}},
	}
}

// principal is an identity with credentials that the fake hands out.
type principal struct {
	name     string
	secret   string
	lifetime time.Duration
	failing  bool
	tokens   map[string]time.Time // session tokens and when they end
}

// AddPrincipal makes an identity whose credentials live for an hour.
func (s *Server) AddPrincipal(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.principals["ASIA"+strings.ToUpper(randomHex(8))] = &principal{name: name, secret: randomHex(20), lifetime: time.Hour, tokens: map[string]time.Time{}}
}

// CredentialsURL is the value for AWS_CONTAINER_CREDENTIALS_FULL_URI.
func (s *Server) CredentialsURL(name string) string {
	return s.plain.URL + "/credentials/" + name
}

// ProcessAnswer is a credential as a credential_process prints it
// (https://docs.aws.amazon.com/sdkref/latest/guide/feature-process-credentials.html).
func (s *Server) ProcessAnswer(name string) (string, error) {
	resp, err := http.Get(s.CredentialsURL(name))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var c map[string]string
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]any{"Version": 1, "AccessKeyId": c["AccessKeyId"], "SecretAccessKey": c["SecretAccessKey"], "SessionToken": c["Token"], "Expiration": c["Expiration"]})
	return string(b), err
}

// SetCredentials sets how long handed-out credentials live from now on, and
// whether the endpoint refuses to hand any out.
func (s *Server) SetCredentials(name string, lifetime time.Duration, failing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.principals {
		if p.name == name {
			p.lifetime, p.failing = lifetime, failing
		}
	}
}

// ExpireCredentials ends every session handed out so far.
func (s *Server) ExpireCredentials(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.principals {
		if p.name == name {
			for t := range p.tokens {
				p.tokens[t] = time.Time{}
			}
		}
	}
}

// Tokens are the session tokens that were handed out so far, also those that ended.
func (s *Server) Tokens(name string) (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.principals {
		if p.name == name {
			out = slices.AppendSeq(out, maps.Keys(p.tokens))
		}
	}
	return out
}

// session is one set of credentials as it is handed out.
type session struct {
	AccessKeyID, Secret, Token string
	Ends                       time.Time
}

// open hands out credentials, or nil if the role is withdrawn; ok: there is such
// a principal.
func (s *Server) open(name string) (out *session, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, p := range s.principals {
		if p.name != name {
			continue
		}
		if p.failing {
			return nil, true
		}
		token, ends := randomHex(16), s.time().Add(p.lifetime)
		p.tokens[token] = ends
		return &session{id, p.secret, token, ends}, true
	}
	return nil, false
}

// credentials answers as the endpoint of a container's role does.
func (s *Server) credentials(w http.ResponseWriter, name string) {
	c, ok := s.open(name)
	switch {
	case !ok:
		http.NotFound(w, nil)
	case c == nil:
		http.Error(w, `{"code":"Forbidden","message":"role withdrawn"}`, http.StatusForbidden)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"AccessKeyId": c.AccessKeyID, "SecretAccessKey": c.Secret, "Token": c.Token,
			"Expiration": c.Ends.UTC().Format(time.RFC3339)}) // the client may be gone
	}
}

// caller finds who signed a request and for which region; mu is held.
func (s *Server) caller(r *http.Request) (who, region string, fail *failure) {
	parts := credentialScope(r)
	if len(parts) != 5 || parts[4] != "aws4_request" {
		return "", "", refuse("MissingAuthenticationToken", "Request is missing Authentication Token")
	}
	p := s.principals[parts[0]]
	if p == nil {
		return "", "", refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	ends, known := p.tokens[r.Header.Get("X-Amz-Security-Token")]
	if !known {
		return "", "", refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	now := s.time()
	if now.After(ends) {
		return "", "", refuse("ExpiredTokenException", "The security token included in the request is expired")
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || now.Sub(at).Abs() > 5*time.Minute {
		return "", "", refuse("InvalidSignatureException", "Signature expired: "+r.Header.Get("X-Amz-Date")+" is now earlier than the allowed time")
	}
	return p.name, parts[2], nil
}

// credentialScope is <access key>/<date>/<region>/<service>/aws4_request.
func credentialScope(r *http.Request) []string {
	for _, part := range strings.FieldsFunc(r.Header.Get("Authorization"), func(c rune) bool { return c == ' ' || c == ',' }) {
		if v, ok := strings.CutPrefix(part, "Credential="); ok {
			return strings.Split(v, "/")
		}
	}
	return nil
}

func signedFor(r *http.Request) string {
	if p := credentialScope(r); len(p) == 5 {
		return p[2]
	}
	return ""
}
