package awskms_test

import (
	"context"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/pkg/keys/keystest"
	"kms-plugin.io/test/awsenv"
	"kms-plugin.io/test/fakekms"
)

var bound = keys.NewContext("test", keys.BlobProbe, nil)

// clear removes what the machine may have set for AWS, and what it is.
func clear(t testing.TB) {
	t.Helper()
	awsenv.Clear(t)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func start(t *testing.T, c fakekms.Config) *fakekms.Server {
	t.Helper()
	clear(t)
	s, err := fakekms.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", s.CredentialsURL("default"))
	return s
}

func kek(t *testing.T, s *fakekms.Server, arn string) *awskms.KEK {
	t.Helper()
	k, err := awskms.New(t.Context(), awskms.Config{KeyARN: arn, Endpoint: s.URL()})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestConformance(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn, other := s.CreateKey("eu-west-1", fakekms.KeyOptions{}), s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	keystest.Run(t, keystest.Config{
		New:    func(t *testing.T) keys.KEK { return kek(t, s, arn) },
		Other:  func(t *testing.T) keys.KEK { return kek(t, s, other) },
		Rotate: func(*testing.T) { s.Rotate(arn) },
	})
}

func TestFaults(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	k := kek(t, s, arn)
	blob, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound)
	if err != nil {
		t.Fatal(err)
	}
	custom := func(code string, status int) fakekms.Fault {
		return fakekms.Fault{Kind: fakekms.Custom, Code: code, Status: status}
	}
	for name, tc := range map[string]struct {
		fault fakekms.Fault
		class keys.Class
		code  string
		calls int // attempts made, 0 is several
	}{
		"throttled":       {fakekms.Fault{Kind: fakekms.Throttle}, keys.ClassOutage, "ThrottlingException", 0},
		"internal":        {fakekms.Fault{Kind: fakekms.InternalError}, keys.ClassOutage, "KMSInternalException", 0},
		"unavailable":     {fakekms.Fault{Kind: fakekms.KeyUnavailable}, keys.ClassOutage, "KeyUnavailableException", 0},
		"dependency":      {fakekms.Fault{Kind: fakekms.DependencyTimeout}, keys.ClassOutage, "DependencyTimeoutException", 0},
		"quota":           {custom("LimitExceededException", 400), keys.ClassOutage, "LimitExceededException", 0},
		"hang":            {fakekms.Fault{Kind: fakekms.Hang}, keys.ClassOutage, "Timeout", 0},
		"reset":           {fakekms.Fault{Kind: fakekms.Reset}, keys.ClassOutage, "Unreachable", 0},
		"garbage":         {fakekms.Fault{Kind: fakekms.Garbage}, keys.ClassOutage, "UnreadableAnswer", 0},
		"html":            {fakekms.Fault{Kind: fakekms.HTMLError}, keys.ClassOutage, "UnreadableAnswer", 0},
		"wrong key":       {fakekms.Fault{Kind: fakekms.WrongKey}, keys.ClassOutage, "WrongKeyAnswered", 1},
		"denied":          {fakekms.Fault{Kind: fakekms.Deny}, keys.ClassAuthorization, "AccessDeniedException", 1},
		"expired":         {fakekms.Fault{Kind: fakekms.ExpiredToken}, keys.ClassCredential, "ExpiredTokenException", 1},
		"unrecognized":    {fakekms.Fault{Kind: fakekms.UnrecognizedClient}, keys.ClassCredential, "UnrecognizedClientException", 1},
		"signature":       {fakekms.Fault{Kind: fakekms.InvalidSignature}, keys.ClassCredential, "InvalidSignatureException", 1},
		"unknown refusal": {custom("BrandNewException", 400), keys.ClassCredential, "BrandNewException", 1},
		"unknown 500":     {custom("BrandNewFault", 500), keys.ClassOutage, "BrandNewFault", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s.ResetCounts()
			s.SetFault(tc.fault)
			defer s.ClearFaults()
			ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
			defer cancel()
			begun := time.Now()
			_, err := k.Unwrap(ctx, blob.Blob, bound)
			var e *keys.Error
			if !errors.As(err, &e) || e.Class != tc.class || e.Code != tc.code || e.Region != "eu-west-1" {
				t.Fatalf("Unwrap = %v (%+v), want class %v, code %s", err, e, tc.class, tc.code)
			}
			if d := time.Since(begun); d > 3*time.Second {
				t.Errorf("it took %s with 2.5 s to go", d)
			}
			if n := s.Calls().Ops["Decrypt"]; tc.calls == 1 && n != 1 || tc.calls == 0 && n < 2 {
				t.Errorf("%d attempts were made", n)
			}
		})
	}
	if _, err := k.Unwrap(t.Context(), blob.Blob, bound); err != nil {
		t.Errorf("Unwrap after all faults: %v", err)
	}
}

func TestKeyStates(t *testing.T) {
	s := start(t, fakekms.Config{})
	for code, spoil := range map[string]func(arn string){
		"DisabledException":        func(arn string) { s.SetState(arn, fakekms.Disabled) },
		"KMSInvalidStateException": func(arn string) { s.SetState(arn, fakekms.PendingDeletion) },
		"NotFoundException":        s.Delete,
		"AccessDeniedException": func(arn string) {
			s.SetPolicy(arn, []fakekms.Statement{{ContextEquals: map[string]string{keys.ContextCluster: "another"}}})
		},
	} {
		arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
		k := kek(t, s, arn)
		spoil(arn)
		_, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound)
		var e *keys.Error
		if !errors.As(err, &e) || e.Code != code || e.Hint == "" || e.Class != keys.ClassKeyState && e.Class != keys.ClassAuthorization {
			t.Errorf("Wrap = %v, want %s with a hint", err, code)
		}
	}
	sign := kek(t, s, s.CreateKey("eu-west-1", fakekms.KeyOptions{SignOnly: true}))
	if _, err := sign.Wrap(t.Context(), make(keys.Secret, 32), bound); keys.ClassOf(err) != keys.ClassKeyState {
		t.Errorf("Wrap with a signing key = %v, want class key-state", err)
	}
}

func TestCredentials(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	wrap := func(k keys.KEK) error {
		_, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound)
		return err
	}
	if err := wrap(kek(t, s, arn)); err != nil {
		t.Fatalf("with the role of the container: %v", err)
	}
	s.SetCredentials("default", time.Hour, true)
	if err := wrap(kek(t, s, arn)); keys.ClassOf(err) != keys.ClassCredential {
		t.Errorf("with a withdrawn role = %v, want class credential", err)
	}
	s.SetCredentials("default", time.Hour, false)
	used := kek(t, s, arn)
	if err := wrap(used); err != nil {
		t.Fatal(err)
	}
	s.ExpireCredentials("default")
	if err := wrap(used); keys.ClassOf(err) != keys.ClassCredential {
		t.Errorf("with an expired session = %v, want class credential", err)
	}
	s.SetClock(10 * time.Minute)
	if err := wrap(kek(t, s, arn)); err != nil {
		t.Errorf("the first call with a clock that is off = %v, want it made again with the clock of KMS", err)
	}
	s.SetCredentials("default", 5*time.Minute, false)
	behind := kek(t, s, arn)
	if err := wrap(behind); err != nil {
		t.Errorf("a clock that is behind, with a credential for five minutes: %v", err)
	}
	s.SetClock(16 * time.Minute) // it has ended, and this node does not know
	if err := wrap(behind); keys.ClassOf(err) != keys.ClassCredential || !strings.Contains(err.Error(), "Expired") {
		t.Errorf("with an ended credential and a clock that is behind = %v, want class credential", err)
	}
	s.SetClock(-10 * time.Minute)
	if err := wrap(kek(t, s, arn)); keys.ClassOf(err) != keys.ClassCredential || !strings.Contains(err.Error(), "clock of this node is ahead") {
		t.Errorf("a clock that is ahead of the end of the credential = %v, want class credential and the cause", err)
	}
	s.SetCredentials("default", time.Hour, false)
	if err := wrap(kek(t, s, arn)); err != nil {
		t.Errorf("a clock that is ahead, with a credential for an hour: %v", err)
	}
	s.SetClock(0)
	s.SetFault(fakekms.Fault{Kind: fakekms.Custom, Status: 400, Code: "InvalidSignatureException", Text: "Signature expired: it is now earlier than the allowed time"})
	var e *keys.Error
	if err := wrap(kek(t, s, arn)); !errors.As(err, &e) || e.Class != keys.ClassOutage || e.Code != "ClockSkew" {
		t.Errorf("with a clock that is off = %v, want an outage, ClockSkew", err)
	}
}

func TestStaticCredentials(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secretsecretsecretsecret")
	var ce *awskms.ConfigError
	if _, err := awskms.New(t.Context(), awskms.Config{KeyARN: arn}); !errors.As(err, &ce) || !strings.Contains(ce.Hint(), "allowStaticCredentials") {
		t.Errorf("New with a static credential in the environment = %v, want a refusal with a hint", err)
	}
	allowed, err := awskms.New(t.Context(), awskms.Config{KeyARN: arn, Endpoint: s.URL(), AllowStaticCredentials: true})
	if err != nil {
		t.Fatal(err)
	}
	// The fake does not know the key: reaching it shows that it was used.
	if _, err := allowed.Wrap(t.Context(), make(keys.Secret, 32), bound); keys.ClassOf(err) != keys.ClassCredential || !strings.Contains(err.Error(), "UnrecognizedClient") {
		t.Errorf("Wrap with an allowed static credential = %v", err)
	}
	clear(t)
	file := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(file, []byte("[default]\naws_access_key_id=AKIAX\naws_secret_access_key=secretsecretsecret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file)
	if _, err := awskms.New(t.Context(), awskms.Config{KeyARN: arn, Endpoint: s.URL()}); !errors.As(err, &ce) || !strings.Contains(err.Error(), `access key of profile "default"`) {
		t.Errorf("New with a static credential of a file = %v, want a refusal", err)
	}
}

func TestEnvironmentDoesNotRedirect(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
	t.Setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")
	t.Setenv("AWS_CA_BUNDLE", "/nonexistent")
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	removed := awskms.ScrubEnvironment()
	if len(removed) != 3 {
		t.Errorf("removed %q, want the two endpoints and the CA bundle", removed)
	}
	if _, err := kek(t, s, arn).Wrap(t.Context(), make(keys.Secret, 32), bound); err != nil {
		t.Errorf("Wrap: %v", err)
	}
}

func TestTLSAndCABundle(t *testing.T) {
	s := start(t, fakekms.Config{TLS: true})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	bundle := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(bundle, s.CABundlePEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	c := awskms.Config{KeyARN: arn, Endpoint: s.URL(), CABundle: bundle}
	k, err := awskms.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound); err != nil {
		t.Errorf("with the CA bundle: %v", err)
	}
	c.CABundle = ""
	k, err = awskms.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound); keys.ClassOf(err) != keys.ClassOutage {
		t.Errorf("with an unknown CA = %v, want an outage", err)
	}
	for name, content := range map[string]string{"no certificate": "junk", "broken": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE"}))} {
		if err := os.WriteFile(bundle, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c.CABundle = bundle
		if _, err := awskms.New(t.Context(), c); err == nil || !strings.Contains(err.Error(), "no certificate") {
			t.Errorf("%s: New = %v", name, err)
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	s := start(t, fakekms.Config{})
	k := kek(t, s, s.CreateKey("eu-west-1", fakekms.KeyOptions{}))
	if _, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound); err != nil { // the credential is there
		t.Fatal(err)
	}
	s.SetFault(fakekms.Fault{Op: "Encrypt", Kind: fakekms.Latency, Latency: 20 * time.Millisecond})
	var wg sync.WaitGroup
	for range 150 {
		wg.Go(func() {
			if _, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	herd := s.Calls()
	for calls := s.Calls(); ; calls = herd { // what was dialled for calls that timed out comes late
		time.Sleep(200 * time.Millisecond)
		if herd = s.Calls(); herd.Connections == calls.Connections {
			break
		}
	}
	if herd.MaxInFlight > 128 {
		t.Errorf("%d calls in flight at once, want at most 128", herd.MaxInFlight)
	}
	// How many connections the herd took depends on how many calls timed out, which
	// the machine decides. Those after it need none of their own.
	s.ClearFaults()
	for range 20 {
		if _, err := k.Wrap(t.Context(), make(keys.Secret, 32), bound); err != nil {
			t.Fatal(err)
		}
	}
	if more := s.Calls().Connections - herd.Connections; more > 5 {
		t.Errorf("%d connections for 20 calls one after the other, want those that are there", more)
	}
}

func TestMultiRegionIsOneKEK(t *testing.T) {
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{MultiRegion: true, Replicas: []string{"us-east-1"}})
	primary, replica := kek(t, s, arn), kek(t, s, s.ReplicaARN(arn, "us-east-1"))
	if primary.Identity() != replica.Identity() || !strings.HasPrefix(primary.Identity(), "awskms:aws::111122223333:mrk-") {
		t.Errorf("identities %q and %q, want one without region", primary.Identity(), replica.Identity())
	}
	v, err := keys.WrapVerified(t.Context(), primary, make(keys.Secret, 32), bound)
	if err != nil {
		t.Fatal(err)
	}
	u, err := replica.Unwrap(t.Context(), v.Blob, bound)
	if err != nil || u.Material != v.Material || u.Region != "us-east-1" || u.RequestID == "" {
		t.Errorf("Unwrap by the replica = %+v, %v", u, err)
	}
}

func TestValidate(t *testing.T) {
	clear(t)
	const good = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	for name, tc := range map[string]struct {
		c          awskms.Config
		want, hint string
	}{
		"alias ARN":       {awskms.Config{KeyARN: "arn:aws:kms:eu-west-1:111122223333:alias/prod"}, "alias", "aws kms describe-key --key-id"},
		"alias":           {awskms.Config{KeyARN: "alias/prod"}, "alias", "aws kms describe-key"},
		"bare id":         {awskms.Config{KeyARN: "1234abcd-12ab-34cd-56ef-1234567890ab"}, "bare id", "aws kms describe-key"},
		"empty":           {awskms.Config{}, "not the ARN", "arn:aws:kms"},
		"short account":   {awskms.Config{KeyARN: "arn:aws:kms:eu-west-1:1:key/1234abcd-12ab-34cd-56ef-1234567890ab"}, "not the ARN", ""},
		"other region":    {awskms.Config{KeyARN: good, Endpoint: "https://kms.us-east-1.amazonaws.com"}, "region us-east-1", "own region"},
		"fips region":     {awskms.Config{KeyARN: good, Endpoint: "https://kms-fips.us-east-1.amazonaws.com"}, "region us-east-1", "own region"},
		"vpce region":     {awskms.Config{KeyARN: good, Endpoint: "https://vpce-1-2.kms.us-east-1.vpce.amazonaws.com"}, "region us-east-1", "own region"},
		"no URL":          {awskms.Config{KeyARN: good, Endpoint: "kms.example.com"}, "not a URL", "https://"},
		"no proxy":        {awskms.Config{KeyARN: good, Proxy: "proxy"}, "not a URL", "http://"},
		"fine":            {awskms.Config{KeyARN: good}, "", ""},
		"fine, own vpce":  {awskms.Config{KeyARN: good, Endpoint: "https://vpce-1-2.kms.eu-west-1.vpce.amazonaws.com"}, "", ""},
		"fine, gov cloud": {awskms.Config{KeyARN: "arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-1234567890abcdef1234567890abcdef"}, "", ""},
	} {
		err := awskms.Validate(tc.c)
		if tc.want == "" {
			if err != nil {
				t.Errorf("%s: Validate = %v, want nil", name, err)
			}
			continue
		}
		var ce *awskms.ConfigError
		if !errors.As(err, &ce) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(ce.Hint(), tc.hint) {
			t.Errorf("%s: Validate = %v, want %q with hint %q", name, err, tc.want, tc.hint)
		}
	}
}
