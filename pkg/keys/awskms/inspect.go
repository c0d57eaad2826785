package awskms

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"kms-plugin.io/pkg/keys"
)

// An Inspector asks AWS what a person wants to know of a key before it is relied
// on, and serving never needs. It changes nothing: what could, is a dry run. Its
// errors are *keys.Error. Safe for concurrent use.
type Inspector struct {
	arn   arn
	full  string
	cfg   aws.Config
	kms   *kms.Client
	sts   *sts.Client
	clock *clock
	token string // file of a web identity, "" for none
}

// The operations of an Inspector, as its errors name them.
const (
	opReach    keys.Op = "reach"
	opCaller   keys.Op = "get-caller-identity"
	opDescribe keys.Op = "describe"
	opRotation keys.Op = "get-rotation-status"
	opDryRun   keys.Op = "dry-run"
	opSource   keys.Op = "get-credentials"
)

// Inspect makes one for a key: offline, no call to AWS. stsEndpoint is a URL, ""
// for that of the region. Errors are *ConfigError.
func Inspect(ctx context.Context, c Config, stsEndpoint string) (*Inspector, error) {
	if err := Validate(c); err != nil {
		return nil, err
	}
	a, err := parseARN(c.KeyARN)
	if err != nil {
		return nil, err
	}
	h, err := httpClient(c)
	if err != nil {
		return nil, err
	}
	watch := &clock{next: h.Transport}
	creds, cfg, err := newCredentials(ctx, c, a.region)
	if err != nil {
		return nil, err
	}
	cfg.Credentials, cfg.HTTPClient = creds, &http.Client{Transport: watch}
	identity := sts.NewFromConfig(cfg, func(o *sts.Options) {
		o.Retryer = aws.NopRetryer{}
		o.BaseEndpoint = nil
		if stsEndpoint != "" {
			o.BaseEndpoint = aws.String(stsEndpoint)
		}
	})
	return &Inspector{arn: a, full: c.KeyARN, cfg: cfg, kms: kmsClient(cfg, c), sts: identity, clock: watch, token: tokenFile(cfg, creds.about.Kind)}, nil
}

// Credential is what calls are signed with; nothing of it is secret.
type Credential struct {
	Source  string    // as the SDK names it: "EC2RoleProvider"
	Static  bool      // long-lived
	Expires time.Time // zero if it does not
}

// Credential finds the source of credentials.
func (i *Inspector) Credential(ctx context.Context) (Credential, error) {
	c, err := retrieve(ctx, i.cfg.Credentials)
	if err != nil {
		e, _ := judge(err)
		e.Op, e.Key, e.Region = opSource, i.arn.identity(), i.arn.region
		return Credential{}, &e
	}
	out := Credential{Source: c.Source, Static: !c.CanExpire && c.SessionToken == ""}
	if c.CanExpire {
		out.Expires = c.Expires
	}
	return out, nil
}

// Caller asks STS who we are: the ARN of the identity.
func (i *Inspector) Caller(ctx context.Context) (string, error) {
	var out *sts.GetCallerIdentityOutput
	err := line{i.arn, maxAttempts, nil}.attempt(ctx, opCaller, func(ctx context.Context) (err error) {
		out, err = i.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		return err
	})
	if err != nil {
		return "", err
	}
	return aws.ToString(out.Arn), nil
}

// Reach asks the endpoint for anything at all, without a credential, and returns
// its address and how long an answer took on a connection that was open before.
func (i *Inspector) Reach(ctx context.Context) (endpoint string, latency time.Duration, err error) {
	o := i.kms.Options()
	resolved, err := o.EndpointResolverV2.ResolveEndpoint(ctx, kms.EndpointParameters{Region: &i.arn.region, Endpoint: o.BaseEndpoint})
	if err != nil {
		return "", 0, &keys.Error{Class: keys.ClassOutage, Op: opReach, Key: i.arn.identity(), Region: i.arn.region, Err: err}
	}
	endpoint = resolved.URI.String()
	for range 2 {
		begun := time.Now()
		err = line{i.arn, maxAttempts, nil}.attempt(ctx, opReach, func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
			if err != nil {
				return err
			}
			resp, err := i.cfg.HTTPClient.Do(req)
			if err != nil {
				return err
			}
			return resp.Body.Close()
		})
		if err != nil {
			return endpoint, 0, err
		}
		latency = time.Since(begun)
	}
	return endpoint, latency, nil
}

// Description is what AWS tells of a key.
type Description struct {
	State       string    // "Enabled"
	Usage       string    // "ENCRYPT_DECRYPT"
	Origin      string    // "AWS_KMS"
	Deletion    time.Time // zero if none is pending
	ValidTo     time.Time // of imported material; zero if it has no end
	MultiRegion bool
	Material    string
}

// Describe needs kms:DescribeKey.
func (i *Inspector) Describe(ctx context.Context) (Description, error) {
	var out *kms.DescribeKeyOutput
	err := line{i.arn, maxAttempts, nil}.attempt(ctx, opDescribe, func(ctx context.Context) (err error) {
		out, err = i.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &i.full})
		if err == nil && out.KeyMetadata == nil {
			err = errors.New("an answer without the key")
		}
		return err
	})
	if err != nil {
		return Description{}, err
	}
	m := out.KeyMetadata
	return Description{State: string(m.KeyState), Usage: string(m.KeyUsage), Origin: string(m.Origin), Deletion: aws.ToTime(m.DeletionDate),
		ValidTo: aws.ToTime(m.ValidTo), MultiRegion: aws.ToBool(m.MultiRegion), Material: aws.ToString(m.CurrentKeyMaterialId)}, nil
}

// Rotation is how AWS makes new material for a key.
type Rotation struct {
	Enabled bool
	Days    int
	Next    time.Time
}

// Rotation needs kms:GetKeyRotationStatus.
func (i *Inspector) Rotation(ctx context.Context) (Rotation, error) {
	var out *kms.GetKeyRotationStatusOutput
	err := line{i.arn, maxAttempts, nil}.attempt(ctx, opRotation, func(ctx context.Context) (err error) {
		out, err = i.kms.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &i.full})
		return err
	})
	if err != nil {
		return Rotation{}, err
	}
	return Rotation{out.KeyRotationEnabled, int(aws.ToInt32(out.RotationPeriodInDays)), aws.ToTime(out.NextRotationDate)}, nil
}

// Action is something that a dry run asks for.
type Action string

// The actions, by their names in policies.
const (
	Encrypt     Action = "kms:Encrypt"
	Decrypt     Action = "kms:Decrypt"
	ReEncrypt   Action = "kms:ReEncrypt"
	CreateGrant Action = "kms:CreateGrant"
)

// Allowed tells whether this identity may do something with the key, without
// doing it. A denial is an answer, not an error.
func (i *Inspector) Allowed(ctx context.Context, a Action, bound keys.Context) (bool, error) {
	err := line{i.arn, maxAttempts, nil}.attempt(ctx, opDryRun, func(ctx context.Context) error { return i.dryRun(ctx, a, bound) })
	var e *keys.Error
	switch {
	case err == nil:
		return false, &keys.Error{Class: keys.ClassOutage, Op: opDryRun, Key: i.arn.identity(), Region: i.arn.region, Err: fmt.Errorf("%s was done although a dry run was asked for", a)}
	case errors.As(err, &e) && e.Code == codeDryRun:
		return true, nil
	case errors.As(err, &e) && e.Class == keys.ClassAuthorization:
		return false, nil
	}
	return false, err
}

// codeDryRun is how KMS says that the call would have succeeded. It is not in the
// table of codes: as the answer to a real call it must not count as a success.
const codeDryRun = "DryRunOperationException"

func (i *Inspector) dryRun(ctx context.Context, a Action, bound keys.Context) (err error) {
	dry, noBlob := aws.Bool(true), []types.DryRunModifierType{types.DryRunModifierTypeIgnoreCiphertext}
	switch a {
	case Encrypt:
		_, err = i.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &i.full, Plaintext: []byte("dry run"), EncryptionContext: bound, DryRun: dry})
	case Decrypt:
		_, err = i.kms.Decrypt(ctx, &kms.DecryptInput{KeyId: &i.full, EncryptionContext: bound, DryRun: dry, DryRunModifiers: noBlob})
	case ReEncrypt:
		_, err = i.kms.ReEncrypt(ctx, &kms.ReEncryptInput{SourceKeyId: &i.full, DestinationKeyId: &i.full, SourceEncryptionContext: bound,
			DestinationEncryptionContext: bound, DryRun: dry, DryRunModifiers: noBlob})
	case CreateGrant:
		_, err = i.kms.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: &i.full, Operations: []types.GrantOperation{types.GrantOperationDecrypt},
			GranteePrincipal: aws.String("arn:" + i.arn.partition + ":iam::" + i.arn.account + ":root"), DryRun: dry})
	default:
		err = fmt.Errorf("%q is no action of a dry run", a)
	}
	return err
}

// Skew is how far the clock of AWS is before ours, as the last answer told; ok is
// false if none did. An answer has whole seconds.
func (i *Inspector) Skew() (skew time.Duration, ok bool) { return i.clock.read() }

// clock notes the Date of each answer of AWS.
type clock struct {
	next http.RoundTripper

	mu   sync.Mutex
	skew time.Duration
	seen bool
}

// RoundTrip implements http.RoundTripper.
func (c *clock) RoundTrip(r *http.Request) (*http.Response, error) {
	sent := time.Now()
	resp, err := c.next.RoundTrip(r)
	if err != nil || isMetadata(r.URL.Host) {
		return resp, err
	}
	if date, perr := http.ParseTime(resp.Header.Get("Date")); perr == nil {
		middle := sent.Add(time.Since(sent) / 2)
		c.mu.Lock()
		c.skew, c.seen = date.Add(500*time.Millisecond).Sub(middle), true
		c.mu.Unlock()
	}
	return resp, err
}

// isMetadata: the metadata service of a node has the node's clock.
func isMetadata(host string) bool {
	return strings.HasPrefix(host, "169.254.") || strings.HasPrefix(host, "[fd00:ec2:")
}

func (c *clock) read() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skew, c.seen
}
