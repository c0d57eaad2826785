package fakekms_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"kms-plugin.io/test/fakekms"
)

func start(t *testing.T) *fakekms.Server {
	t.Helper()
	s, err := fakekms.Start(fakekms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// client is the real SDK's, without retries, as a principal in a region.
func client(s *fakekms.Server, principal, region string) *kms.Client {
	return kms.New(kms.Options{Region: region, BaseEndpoint: aws.String(s.URL()), Retryer: aws.NopRetryer{}, HTTPClient: &http.Client{},
		Credentials: aws.NewCredentialsCache(endpointcreds.New(s.CredentialsURL(principal)))})
}

func encrypt(t *testing.T, c *kms.Client, arn string, context map[string]string) []byte {
	t.Helper()
	out, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte("plain"), EncryptionContext: context})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(out.CiphertextBlob); got != 152+len("plain") {
		t.Errorf("the blob has %d bytes, AWS would give 152 more than the plaintext", got)
	}
	return out.CiphertextBlob
}

func decrypt(t *testing.T, c *kms.Client, arn string, blob []byte, context map[string]string) (*kms.DecryptOutput, error) {
	t.Helper()
	return c.Decrypt(t.Context(), &kms.DecryptInput{KeyId: &arn, CiphertextBlob: blob, EncryptionContext: context})
}

func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func TestContextMaterialAndRotation(t *testing.T) {
	s := start(t)
	arn, other := s.CreateKey("eu-west-1", fakekms.KeyOptions{}), s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	c := client(s, "default", "eu-west-1")
	bound := map[string]string{"a": "b"}
	blob := encrypt(t, c, arn, bound)
	first := s.Material(arn)
	if _, err := decrypt(t, c, arn, blob, nil); code(err) != "InvalidCiphertextException" {
		t.Errorf("without its context: %v", err)
	}
	if _, err := decrypt(t, c, other, blob, bound); code(err) != "IncorrectKeyException" {
		t.Errorf("with another key: %v", err)
	}
	if _, err := c.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	out, err := decrypt(t, c, arn, blob, bound)
	if err != nil || aws.ToString(out.KeyMaterialId) != first || aws.ToString(out.KeyId) != arn {
		t.Errorf("old blob after a rotation: %+v, %v", out, err)
	}
	out, err = decrypt(t, c, arn, encrypt(t, c, arn, bound), bound)
	if err != nil || aws.ToString(out.KeyMaterialId) == first || aws.ToString(out.KeyMaterialId) != s.Material(arn) {
		t.Errorf("new blob after a rotation: %+v, %v", out, err)
	}
	list, err := c.ListKeyRotations(t.Context(), &kms.ListKeyRotationsInput{KeyId: &arn, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial})
	if err != nil || len(list.Rotations) != 2 || list.Rotations[1].KeyMaterialState != types.KeyMaterialStateCurrent {
		t.Errorf("ListKeyRotations: %+v, %v", list, err)
	}
	for range 24 {
		if _, err := c.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &arn}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &arn}); code(err) != "LimitExceededException" {
		t.Errorf("26th rotation on demand: %v", err)
	}
}

func TestConsistencyDiffersByCaller(t *testing.T) {
	s := start(t)
	s.AddPrincipal("slow")
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	old := s.Material(arn)
	s.SetConsistency(func(caller string, _ int, h []string) int {
		if caller == "slow" {
			return 0
		}
		return len(h) - 1
	})
	s.Rotate(arn)
	for principal, want := range map[string]string{"slow": old, "default": s.Material(arn)} {
		c := client(s, principal, "eu-west-1")
		out, err := decrypt(t, c, arn, encrypt(t, c, arn, nil), nil)
		if err != nil || aws.ToString(out.KeyMaterialId) != want {
			t.Errorf("%s wraps with %s, %v; want %s", principal, aws.ToString(out.KeyMaterialId), err, want)
		}
	}
}

func TestMultiRegion(t *testing.T) {
	s := start(t)
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{MultiRegion: true, Replicas: []string{"us-east-1"}})
	replica := s.ReplicaARN(arn, "us-east-1")
	blob := encrypt(t, client(s, "default", "eu-west-1"), arn, nil)
	us := client(s, "default", "us-east-1")
	if out, err := decrypt(t, us, replica, blob, nil); err != nil || aws.ToString(out.KeyId) != replica {
		t.Errorf("replica: %+v, %v", out, err)
	}
	if _, err := decrypt(t, us, arn, blob, nil); code(err) != "NotFoundException" {
		t.Errorf("the ARN of another region: %v", err)
	}
	s.SetState(replica, fakekms.Disabled)
	if _, err := decrypt(t, us, replica, blob, nil); code(err) != "DisabledException" {
		t.Errorf("disabled replica: %v", err)
	}
	if _, err := decrypt(t, client(s, "default", "eu-west-1"), arn, blob, nil); err != nil {
		t.Errorf("the primary while its replica is disabled: %v", err)
	}
}

func TestKeyStatesByTheAPI(t *testing.T) {
	s := start(t)
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{Alias: "prod"})
	c := client(s, "default", "eu-west-1")
	if _, err := c.ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	d, err := c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: aws.String("alias/prod")})
	if err != nil || d.KeyMetadata.KeyState != types.KeyStatePendingDeletion || d.KeyMetadata.DeletionDate == nil || aws.ToString(d.KeyMetadata.Arn) != arn {
		t.Fatalf("DescribeKey by its alias: %+v, %v", d, err)
	}
	if _, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte("x")}); code(err) != "KMSInvalidStateException" {
		t.Errorf("Encrypt while deletion is pending: %v", err)
	}
	if _, err := c.CancelKeyDeletion(t.Context(), &kms.CancelKeyDeletionInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	encrypt(t, c, arn, nil)
	if _, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte("x"), DryRun: aws.Bool(true)}); code(err) != "DryRunOperationException" {
		t.Errorf("dry run: %v", err)
	}
}

func TestPolicyOnTheContext(t *testing.T) {
	s := start(t)
	s.AddPrincipal("node")
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	s.SetPolicy(arn, []fakekms.Statement{
		{Principals: []string{"node"}, Actions: []string{"kms:Encrypt", "kms:Decrypt"}, ContextEquals: map[string]string{"cluster": "a"}},
		{Deny: true, Actions: []string{"kms:CreateGrant"}},
	})
	node := client(s, "node", "eu-west-1")
	encrypt(t, node, arn, map[string]string{"cluster": "a"})
	for name, err := range map[string]error{
		"another cluster": func() error {
			_, err := node.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte("x"), EncryptionContext: map[string]string{"cluster": "b"}})
			return err
		}(),
		"another principal": func() error {
			_, err := client(s, "default", "eu-west-1").Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte("x"), EncryptionContext: map[string]string{"cluster": "a"}})
			return err
		}(),
	} {
		if code(err) != "AccessDeniedException" {
			t.Errorf("%s: %v, want AccessDenied", name, err)
		}
	}
}

// A fault of the second kind: done, but the answer is lost.
func TestFaultAfterEffect(t *testing.T) {
	s := start(t)
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	c := client(s, "default", "eu-west-1")
	before := s.Material(arn)
	s.SetFault(fakekms.Fault{Op: "RotateKeyOnDemand", Kind: fakekms.InternalError, Limit: 1})
	if _, err := c.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &arn}); err == nil || s.Material(arn) != before {
		t.Errorf("failed and not done: %v", err)
	}
	s.SetFault(fakekms.Fault{Op: "RotateKeyOnDemand", Kind: fakekms.Reset, AfterEffect: true, Limit: 1})
	if _, err := c.RotateKeyOnDemand(t.Context(), &kms.RotateKeyOnDemandInput{KeyId: &arn}); err == nil || s.Material(arn) == before {
		t.Errorf("failed but done: %v", err)
	}
	if _, err := c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &arn}); err != nil {
		t.Errorf("after its limit the fault goes on: %v", err)
	}
}

func TestQuotaAndCounts(t *testing.T) {
	s := start(t)
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	c := client(s, "default", "eu-west-1")
	s.SetQuota(1, 3)
	throttled := 0
	for range 10 {
		if _, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: &arn, Plaintext: []byte("x")}); code(err) == "ThrottlingException" {
			throttled++
		}
	}
	if throttled < 4 || throttled > 7 { // one more passes with each second that it takes
		t.Errorf("%d of 10 calls throttled with a burst of 3", throttled)
	}
	if n := s.Calls(); n.Ops["Encrypt"] != 10 || n.Principals["default"] != 10 || len(s.Requests()) != 10 {
		t.Errorf("counts %+v", n)
	} else if before := n.Connections; before < 1 || before > 10 {
		t.Errorf("10 calls one after the other used %d connections", before)
	} else {
		// A client on a transport of its own cannot use a connection again.
		other := &http.Transport{}
		defer other.CloseIdleConnections()
		c := kms.New(c.Options(), func(o *kms.Options) { o.HTTPClient = &http.Client{Transport: other} })
		_, _ = c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &arn})
		// One more may be a dial of before that nobody waited for any longer.
		if after := s.Calls().Connections; after <= before || after > before+2 {
			t.Errorf("one new connection counts as %d", after-before)
		}
	}
}

func TestAwayAndBackOnTheSameAddress(t *testing.T) {
	s := start(t)
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{})
	c := client(s, "default", "eu-west-1")
	encrypt(t, c, arn, nil)
	s.Refuse()
	if _, err := c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: &arn}); err == nil {
		t.Error("a refusing server answered")
	}
	s.Listen()
	encrypt(t, c, arn, nil)
	s.Blackhole()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &arn}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("in a black hole: %v", err)
	}
	s.Unblackhole()
	encrypt(t, c, arn, nil)
}

// Regions share the material of a key and nothing else.
func TestRegions(t *testing.T) {
	s := start(t)
	eu := s.CreateKey("eu-west-1", fakekms.KeyOptions{MultiRegion: true, Replicas: []string{"us-east-1"}})
	us := s.ReplicaARN(eu, "us-east-1")
	region, err := s.Region("us-east-1")
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) *kms.Client {
		return kms.New(kms.Options{Region: name, BaseEndpoint: aws.String(region.URL()), Retryer: aws.NopRetryer{}, HTTPClient: &http.Client{},
			Credentials: aws.NewCredentialsCache(endpointcreds.New(s.CredentialsURL("default")))})
	}
	here, there := client(s, "default", "eu-west-1"), at("us-east-1")
	blob := encrypt(t, here, eu, nil)
	if _, err := decrypt(t, there, us, blob, nil); err != nil {
		t.Errorf("by the replica: %v", err)
	}
	if _, err := decrypt(t, at("eu-west-1"), eu, blob, nil); code(err) != "InvalidSignatureException" {
		t.Errorf("signed for another region: %v", err)
	}
	s.SetState(us, fakekms.Disabled)
	s.SetPolicy(eu, []fakekms.Statement{{Actions: []string{"kms:Decrypt"}}})
	if _, err := decrypt(t, there, us, blob, nil); code(err) != "DisabledException" {
		t.Errorf("disabled in one region: %v", err)
	}
	if _, err := decrypt(t, here, eu, blob, nil); err != nil {
		t.Errorf("in the other one: %v", err)
	}
	s.SetState(us, fakekms.Enabled)
	if m := s.Rotate(eu); s.Material(us) != m {
		t.Error("the rotation of the primary is not that of the replica")
	}
	encrypt(t, there, us, nil) // the policy of the primary is not its own
	region.Refuse()
	if _, err := decrypt(t, there, us, blob, nil); err == nil {
		t.Error("a region that refuses answered")
	}
	if _, err := decrypt(t, here, eu, blob, nil); err != nil {
		t.Errorf("the other region: %v", err)
	}
	region.Listen()
	if _, err := decrypt(t, there, us, blob, nil); err != nil {
		t.Errorf("when it is back: %v", err)
	}
}

func TestKeyOfAnotherAccount(t *testing.T) {
	s := start(t)
	arn := s.CreateKey("eu-west-1", fakekms.KeyOptions{Account: "444455556666"})
	c := client(s, "default", "eu-west-1")
	if _, err := decrypt(t, c, arn, encrypt(t, c, arn, nil), nil); err != nil {
		t.Errorf("in its account: %v", err)
	}
	wrong := "arn:aws:kms:eu-west-1:111122223333" + arn[len("arn:aws:kms:eu-west-1:444455556666"):]
	if _, err := decrypt(t, c, wrong, []byte("x"), nil); code(err) != "NotFoundException" {
		t.Errorf("by another account's ARN: %v", err)
	}
}
