package doctor

import (
	"context"
	"fmt"
	"time"

	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
)

func (p *patient) state(ctx context.Context) preflight.Result {
	if r, ok := p.ready(); !ok {
		return r
	}
	d, err := p.aws.Describe(ctx)
	if keys.ClassOf(err) == keys.ClassAuthorization {
		return preflight.Tell("state and deletion date cannot be told without kms:DescribeKey, which serving does not need")
	}
	if err != nil {
		return failed(err)
	}
	multi := "a key of one region"
	if d.MultiRegion {
		multi = "a multi-Region key"
	}
	arn := p.key.AWSKMS.KeyARN
	switch {
	case !d.Deletion.IsZero():
		return preflight.Fail("aws kms cancel-key-deletion --key-id "+arn, "it will be deleted at %s, and with it every Secret under it, in etcd and in every backup", d.Deletion.UTC().Format(time.RFC3339))
	case d.State != "Enabled":
		return preflight.Fail("aws kms enable-key --key-id "+arn, "its state is %s", d.State)
	case d.Usage != "ENCRYPT_DECRYPT":
		return preflight.Fail("make a symmetric key with usage ENCRYPT_DECRYPT", "its usage is %s", d.Usage)
	case !d.ValidTo.IsZero():
		return preflight.Warn("import the material again before then, without an end", "its imported material ends at %s", d.ValidTo.UTC().Format(time.RFC3339))
	}
	return preflight.Pass("enabled, %s, no deletion is pending, material from %s", multi, d.Origin)
}

func (p *patient) rotation(ctx context.Context) preflight.Result {
	if r, ok := p.ready(); !ok {
		return r
	}
	rot, err := p.aws.Rotation(ctx)
	switch {
	case keys.ClassOf(err) == keys.ClassAuthorization:
		return preflight.Tell("the rotation setting cannot be told without kms:GetKeyRotationStatus, which serving does not need")
	case err != nil:
		return failed(err)
	case !rot.Enabled && p.key.Role == keys.RoleWrite:
		return preflight.Warn("aws kms enable-key-rotation --key-id "+p.key.AWSKMS.KeyARN, "automatic rotation is off")
	case !rot.Enabled:
		return preflight.Tell("automatic rotation is off; a key with role %s needs none", p.key.Role)
	}
	return preflight.Pass("new material every %d days", rot.Days)
}

// denied asks by a dry run for something that must not be allowed.
func (p *patient) denied(a awskms.Action, why string) func(context.Context) preflight.Result {
	return func(ctx context.Context) preflight.Result {
		return p.mustNot(ctx, a, p.bound(p.cluster), string(a), why, "deny "+statement(a)+" to this identity in its policy or in that of the key")
	}
}

func (p *patient) foreign(ctx context.Context) preflight.Result {
	return p.mustNot(ctx, awskms.Encrypt, p.bound(p.foreignCluster()), "kms:Encrypt for another cluster", "what this node can do must end at its cluster",
		fmt.Sprintf("allow kms:Encrypt and kms:Decrypt only on condition that kms:EncryptionContext:%s is %s", keys.ContextCluster, p.cluster))
}

func (p *patient) mustNot(ctx context.Context, a awskms.Action, bound keys.Context, what, why, remedy string) preflight.Result {
	if r, ok := p.ready(); !ok {
		return r
	}
	allowed, err := p.aws.Allowed(ctx, a, bound)
	switch {
	case err != nil:
		return preflight.Skip("the dry run got no answer: %v", err)
	case allowed:
		return preflight.Fail(remedy, "this identity may do %s: %s", what, why)
	}
	return preflight.Pass("%s is denied", what)
}

// statement is the action as policies write it.
func statement(a awskms.Action) string {
	if a == awskms.ReEncrypt {
		return "kms:ReEncrypt*"
	}
	return string(a)
}
