package awskms

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/smithy-go/middleware"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"

	"kms-plugin.io/pkg/keys"
)

// KEK implements keys.KEK on one AWS KMS key.
type KEK struct {
	arn      arn
	full     string
	client   kmsAPI
	creds    *store
	attempts int // of one call
}

var (
	_ keys.KEK          = (*KEK)(nil)
	_ keys.Credentialed = (*KEK)(nil)
)

// New builds a KEK in the region of KeyARN: offline, no call to AWS. Errors are
// *ConfigError.
func New(ctx context.Context, c Config) (*KEK, error) {
	c.Replicas, c.ReplicaEndpoints = nil, nil
	all, err := Regions(ctx, c)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// Credential implements keys.Credentialed.
func (k *KEK) Credential() keys.Credential { return k.creds.describe() }

// KeepCredential implements keys.Credentialed.
func (k *KEK) KeepCredential(ctx context.Context, changed func()) { k.creds.keep(ctx, changed) }

// Region is where the key is asked.
func (k *KEK) Region() string { return k.arn.region }

// MultiRegion says whether the key can have replicas.
func (k *KEK) MultiRegion() bool { return k.arn.multiRegion() }

// Identity implements keys.KEK:
// awskms:<partition>:<region, empty if multi-Region>:<account>:<key id>.
func (k *KEK) Identity() string { return k.arn.identity() }

// Wrap implements keys.KEK by Encrypt.
func (k *KEK) Wrap(ctx context.Context, plaintext keys.Secret, bound keys.Context) (keys.Wrapped, error) {
	var out *kms.EncryptOutput
	err := k.attempt(ctx, keys.OpWrap, func(ctx context.Context) (err error) {
		out, err = k.client.Encrypt(ctx, &kms.EncryptInput{KeyId: &k.full, Plaintext: plaintext, EncryptionContext: bound})
		return err
	})
	if err != nil {
		return keys.Wrapped{Region: k.arn.region}, err
	}
	id := requestID(out.ResultMetadata)
	if err := k.checkAnswer(keys.OpWrap, out.KeyId, id); err != nil {
		return keys.Wrapped{Region: k.arn.region}, err
	}
	if n := len(out.CiphertextBlob); n == 0 || n > keys.MaxBlob {
		return keys.Wrapped{}, k.answered(keys.OpWrap, codeGarbage, id, fmt.Errorf("the blob has %d bytes, 1 to %d are expected", n, keys.MaxBlob))
	}
	return keys.Wrapped{Blob: out.CiphertextBlob, Region: k.arn.region, RequestID: id}, nil
}

// Unwrap implements keys.KEK by Decrypt. KeyId is always sent: without it KMS
// would decrypt under any key that the identity may use.
func (k *KEK) Unwrap(ctx context.Context, blob []byte, bound keys.Context) (keys.Unwrapped, error) {
	if len(blob) == 0 || len(blob) > keys.MaxBlob {
		return keys.Unwrapped{}, &keys.Error{Class: keys.ClassData, Op: keys.OpUnwrap, Key: k.Identity(), Region: k.arn.region,
			Err: fmt.Errorf("the blob has %d bytes, 1 to %d are expected", len(blob), keys.MaxBlob)}
	}
	var out *kms.DecryptOutput
	err := k.attempt(ctx, keys.OpUnwrap, func(ctx context.Context) (err error) {
		out, err = k.client.Decrypt(ctx, &kms.DecryptInput{KeyId: &k.full, CiphertextBlob: blob, EncryptionContext: bound})
		return err
	})
	if err != nil {
		return keys.Unwrapped{Region: k.arn.region}, err
	}
	id := requestID(out.ResultMetadata)
	if err := k.checkAnswer(keys.OpUnwrap, out.KeyId, id); err != nil {
		keys.Secret(out.Plaintext).Destroy()
		return keys.Unwrapped{Region: k.arn.region}, err
	}
	material := aws.ToString(out.KeyMaterialId)
	if len(material) > keys.MaxMaterial {
		keys.Secret(out.Plaintext).Destroy()
		return keys.Unwrapped{}, k.answered(keys.OpUnwrap, codeGarbage, id, fmt.Errorf("KeyMaterialId has %d bytes", len(material)))
	}
	return keys.Unwrapped{Plaintext: out.Plaintext, Material: material, Region: k.arn.region, RequestID: id}, nil
}

// checkAnswer: the key that answered is the key that was asked.
func (k *KEK) checkAnswer(op keys.Op, keyID *string, request string) error {
	got, err := parseARN(aws.ToString(keyID))
	if err == nil && got.identity() == k.arn.identity() {
		return nil
	}
	return k.answered(op, codeWrongKey, request, fmt.Errorf("KMS answered with key %q", aws.ToString(keyID)))
}

// answered is an answer that cannot be used; the key itself was not denied.
func (k *KEK) answered(op keys.Op, code, request string, err error) error {
	return &keys.Error{Class: keys.ClassOutage, Op: op, Key: k.Identity(), Code: code, Region: k.arn.region, RequestID: request, Err: err}
}

func requestID(m middleware.Metadata) string {
	id, _ := awsmiddleware.GetRequestIDMetadata(m)
	return id
}
