package awskms_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/test/fakekms"
)

const cluster = "prod"

func inspector(t *testing.T, s *fakekms.Server, arn string) *awskms.Inspector {
	t.Helper()
	i, err := awskms.Inspect(t.Context(), awskms.Config{KeyARN: arn, Endpoint: s.URL()}, s.URL())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// The clouds of these tests hand out credentials as a container's endpoint does.
func inspected(t *testing.T, o fakekms.KeyOptions) (*fakekms.Server, string) {
	t.Helper()
	s := start(t, fakekms.Config{})
	arn := s.CreateKey("eu-west-1", o)
	s.SetPolicy(arn, fakekms.LeastPrivilege(cluster))
	return s, arn
}

func TestInspect(t *testing.T) {
	s, arn := inspected(t, fakekms.KeyOptions{})
	i := inspector(t, s, arn)
	if _, known := i.Skew(); known {
		t.Error("a skew is known before any answer")
	}
	endpoint, latency, err := i.Reach(t.Context())
	if err != nil || endpoint != s.URL() || latency <= 0 {
		t.Errorf("Reach = %s, %s, %v", endpoint, latency, err)
	}
	if skew, known := i.Skew(); !known || skew.Abs() > 30*time.Second {
		t.Errorf("Skew = %s, %t", skew, known)
	}
	c, err := i.Credential(t.Context())
	if err != nil || c.Source != "CredentialsEndpointProvider" || c.Static || time.Until(c.Expires) < 30*time.Minute {
		t.Errorf("Credential = %+v, %v", c, err)
	}
	if who, err := i.Caller(t.Context()); err != nil || who != "arn:aws:sts::111122223333:assumed-role/default/test" {
		t.Errorf("Caller = %q, %v", who, err)
	}
	d, err := i.Describe(t.Context())
	if err != nil || d.State != "Enabled" || d.Usage != "ENCRYPT_DECRYPT" || d.MultiRegion || !d.Deletion.IsZero() || d.Material != s.Material(arn) {
		t.Errorf("Describe = %+v, %v", d, err)
	}
	if r, err := i.Rotation(t.Context()); err != nil || !r.Enabled || r.Days != 365 {
		t.Errorf("Rotation = %+v, %v", r, err)
	}
	if n := s.Calls().Ops; n["CreateGrant"]+n["ReEncrypt"]+n["Encrypt"]+n["Decrypt"] != 0 {
		t.Errorf("looking called %v", n)
	}
}

func TestInspectorAllowed(t *testing.T) {
	s, arn := inspected(t, fakekms.KeyOptions{})
	i := inspector(t, s, arn)
	own, foreign := keys.NewContext(cluster, keys.BlobProbe, nil), keys.NewContext("other", keys.BlobProbe, nil)
	for name, tc := range map[string]struct {
		policy []fakekms.Statement
		action awskms.Action
		bound  keys.Context
		want   bool
	}{
		"encrypt":               {fakekms.LeastPrivilege(cluster), awskms.Encrypt, own, true},
		"decrypt":               {fakekms.LeastPrivilege(cluster), awskms.Decrypt, own, true},
		"of another cluster":    {fakekms.LeastPrivilege(cluster), awskms.Encrypt, foreign, false},
		"re-encrypt":            {fakekms.LeastPrivilege(cluster), awskms.ReEncrypt, own, false},
		"grant":                 {fakekms.LeastPrivilege(cluster), awskms.CreateGrant, own, false},
		"open: other cluster":   {nil, awskms.Encrypt, foreign, true},
		"open: re-encrypt":      {nil, awskms.ReEncrypt, own, true},
		"open: grant":           {nil, awskms.CreateGrant, own, true},
		"half: re-encrypt":      {[]fakekms.Statement{{Actions: []string{"kms:ReEncryptFrom"}}}, awskms.ReEncrypt, own, false},
		"read only: encrypt":    {[]fakekms.Statement{{Actions: []string{"kms:Decrypt"}}}, awskms.Encrypt, own, false},
		"read only: decrypt":    {[]fakekms.Statement{{Actions: []string{"kms:Decrypt"}}}, awskms.Decrypt, own, true},
		"denied though allowed": {append(fakekms.LeastPrivilege(cluster), fakekms.Statement{Deny: true, Actions: []string{"kms:Encrypt"}}), awskms.Encrypt, own, false},
	} {
		s.SetPolicy(arn, tc.policy)
		if got, err := i.Allowed(t.Context(), tc.action, tc.bound); err != nil || got != tc.want {
			t.Errorf("%s: Allowed = %t, %v; want %t", name, got, err, tc.want)
		}
	}
	for _, r := range s.Requests() {
		if r.Error == "" {
			t.Errorf("%s was done, not tried", r.Op)
		}
	}
}

func TestInspectorErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		fault func(s *fakekms.Server, arn string)
		call  func(t *testing.T, i *awskms.Inspector) error
		class keys.Class
		want  string
	}{
		"describe denied": {func(s *fakekms.Server, arn string) {
			s.SetPolicy(arn, []fakekms.Statement{{Actions: []string{"kms:Encrypt"}}})
		}, describe, keys.ClassAuthorization, "describe with awskms:aws:eu-west-1:"},
		"deleted":        {func(s *fakekms.Server, arn string) { s.Delete(arn) }, describe, keys.ClassKeyState, "NotFoundException"},
		"role withdrawn": {func(s *fakekms.Server, _ string) { s.SetCredentials("default", 0, true) }, credential, keys.ClassCredential, "get-credentials"},
		"STS denies": {func(s *fakekms.Server, _ string) {
			s.SetFault(fakekms.Fault{Op: "GetCallerIdentity", Kind: fakekms.ExpiredToken})
		}, caller, keys.ClassCredential, "get-caller-identity"},
		"refused": {func(s *fakekms.Server, _ string) { s.Refuse() }, reach, keys.ClassOutage, "reach with"},
		"dry run while throttled": {func(s *fakekms.Server, _ string) { s.SetFault(fakekms.Fault{Kind: fakekms.Throttle}) }, func(t *testing.T, i *awskms.Inspector) error {
			_, err := i.Allowed(t.Context(), awskms.Encrypt, nil)
			return err
		}, keys.ClassOutage, "ThrottlingException"},
		"dry run of a disabled key": {func(s *fakekms.Server, arn string) { s.SetState(arn, fakekms.Disabled) }, func(t *testing.T, i *awskms.Inspector) error {
			_, err := i.Allowed(t.Context(), awskms.Encrypt, keys.NewContext(cluster, keys.BlobProbe, nil))
			return err
		}, keys.ClassKeyState, "DisabledException"},
		"no action": {func(*fakekms.Server, string) {}, func(t *testing.T, i *awskms.Inspector) error {
			_, err := i.Allowed(t.Context(), "kms:Bogus", nil)
			return err
		}, keys.ClassOutage, "no action of a dry run"},
	} {
		t.Run(name, func(t *testing.T) {
			s, arn := inspected(t, fakekms.KeyOptions{})
			i := inspector(t, s, arn)
			tc.fault(s, arn)
			err := tc.call(t, i)
			var e *keys.Error
			if !errors.As(err, &e) || e.Class != tc.class || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want class %s and %q", err, tc.class, tc.want)
			}
		})
	}
}

func describe(t *testing.T, i *awskms.Inspector) error { _, err := i.Describe(t.Context()); return err }
func credential(t *testing.T, i *awskms.Inspector) error {
	_, err := i.Credential(t.Context())
	return err
}
func caller(t *testing.T, i *awskms.Inspector) error { _, err := i.Caller(t.Context()); return err }
func reach(t *testing.T, i *awskms.Inspector) error  { _, _, err := i.Reach(t.Context()); return err }

func TestClockSkew(t *testing.T) {
	s, arn := inspected(t, fakekms.KeyOptions{})
	i := inspector(t, s, arn)
	s.SetClock(-10 * time.Minute)
	if _, _, err := i.Reach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if skew, known := i.Skew(); !known || skew > -9*time.Minute || skew < -11*time.Minute {
		t.Errorf("Skew = %s, %t; want about -10m", skew, known)
	}
}

// The role of an instance, by the real SDK's way to it.
func TestInspectInstanceRole(t *testing.T) {
	s, arn := inspected(t, fakekms.KeyOptions{})
	for _, v1 := range []bool{false, true} {
		m := s.StartIMDS("default", v1)
		t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
		t.Setenv("AWS_EC2_METADATA_DISABLED", "false")
		t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", m.URL)
		c, err := inspector(t, s, arn).Credential(t.Context())
		if err != nil || c.Source != awskms.SourceIMDS {
			t.Errorf("Credential = %+v, %v; want source %s", c, err, awskms.SourceIMDS)
		}
		if got, err := awskms.MetadataV1(t.Context()); err != nil || got != v1 {
			t.Errorf("MetadataV1 = %t, %v; want %t", got, err, v1)
		}
		m.Close()
		if _, err := awskms.MetadataV1(t.Context()); err == nil {
			t.Error("MetadataV1 without a metadata service: no error")
		}
	}
}
