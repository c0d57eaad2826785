package doctor

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/internal/kmsclient"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
)

const (
	// slow is a third of what kube-apiserver gives a call: with one attempt lost,
	// the next still fits.
	slow = kmsclient.Timeout / 3
	// soon is when the end of a credential deserves a word: the SDK renews it in
	// the last minutes, and a source that fails shows only then.
	soon = 10 * time.Minute
	// maxSkew is what AWS allows (Signature Version 4); warnSkew is on the way there.
	maxSkew  = 5 * time.Minute
	warnSkew = 30 * time.Second
)

// failed is a failure of the KMS, or of the way to it, in one line.
func failed(err error) preflight.Result {
	var e *keys.Error
	if errors.As(err, &e) {
		return preflight.Fail(e.Hint, "%v", e)
	}
	return preflight.Fail(preflight.HintOf(err, ""), "%v", err)
}

// refused is a failure of the KMS; where there is no such key, every other question
// about it would get the same answer.
func (p *patient) refused(err error) preflight.Result {
	var e *keys.Error
	if errors.As(err, &e) && e.Absent {
		p.blocked = "there is no such key"
	}
	return failed(err)
}

// ready is false, with a result, if nothing can be asked.
func (p *patient) ready() (preflight.Result, bool) {
	switch {
	case p.setup != nil:
		return failed(p.setup), false
	case p.blocked != "":
		return preflight.Skip("%s", p.blocked), false
	}
	return preflight.Result{}, true
}

func (p *patient) credential(ctx context.Context) preflight.Result {
	if r, ok := p.ready(); !ok {
		return r
	}
	c, err := p.aws.Credential(ctx)
	if err != nil {
		p.blocked = "there is no credential" // or one that has ended: awskms hands out none of those
		return failed(err)
	}
	left := time.Until(c.Expires)
	switch {
	case c.Static:
		return preflight.Warn("use a workload identity (instance role, Roles Anywhere) and drop allowStaticCredentials", "a long-lived static credential from %s, which works from anywhere until somebody withdraws it", c.Source)
	case c.Expires.IsZero():
		return preflight.Pass("a session from %s, which does not say when it ends", c.Source)
	case left < soon:
		return preflight.Warn("look whether its source renews it", "the credential of %s expires in %s", c.Source, left.Round(time.Second))
	}
	return preflight.Pass("a short-lived one from %s, until %s", c.Source, c.Expires.UTC().Format(time.RFC3339))
}

func (p *patient) imds(ctx context.Context) preflight.Result {
	if r, ok := p.ready(); !ok {
		return r
	}
	c, err := p.aws.Credential(ctx)
	if err != nil || c.Source != awskms.SourceIMDS {
		return preflight.Skip("the credential does not come from instance metadata")
	}
	v1, err := awskms.MetadataV1(ctx)
	const limit = "aws ec2 modify-instance-metadata-options --instance-id <id> --http-tokens required --http-put-response-hop-limit 1"
	switch {
	case err != nil:
		return preflight.Warn(limit, "whether IMDSv1 is off cannot be told: %v", err)
	case v1:
		return preflight.Warn(limit, "IMDSv1 is on: whoever makes a process of this node fetch a URL gets the credential of the node")
	}
	return preflight.Tell("IMDSv1 is off; the hop limit cannot be seen from here: with hostNetwork it should be 1, so that no other pod reaches the role (%s)", limit)
}

func (p *patient) reach(ctx context.Context) preflight.Result {
	if p.setup != nil {
		return failed(p.setup)
	}
	endpoint, latency, err := p.aws.Reach(ctx)
	if err != nil {
		p.blocked = "the endpoint cannot be reached"
		r := failed(err)
		r.Message = endpoint + ": " + r.Message
		if r.Remedy == "" {
			r.Remedy = "look at DNS, routes, proxy and firewall of this node: curl -v " + endpoint
		}
		return r
	}
	if latency > slow {
		return preflight.Warn("take an endpoint in the region of this node, or look at the way to it", "%s answers in %s; kube-apiserver gives a whole call %s", endpoint, latency.Round(time.Millisecond), kmsclient.Timeout)
	}
	return preflight.Pass("%s answers in %s", endpoint, latency.Round(100*time.Microsecond))
}

func (p *patient) clock(context.Context) preflight.Result {
	if p.setup != nil {
		return failed(p.setup)
	}
	skew, known := p.aws.Skew()
	const remedy = "set the clock of this node: chronyc tracking, or timedatectl"
	switch {
	case !known:
		return preflight.Skip("no answer told the time")
	case skew.Abs() >= maxSkew:
		return preflight.Fail(remedy, "the clock of this node is %s off that of AWS, which refuses what is more than %s off", skew.Abs().Round(time.Second), maxSkew)
	case skew.Abs() >= warnSkew:
		return preflight.Warn(remedy, "the clock of this node is %s off that of AWS, which refuses what is more than %s off", skew.Abs().Round(time.Second), maxSkew)
	}
	return preflight.Pass("less than %s off that of AWS", (skew.Abs() + time.Second).Round(time.Second))
}

func (p *patient) caller(ctx context.Context) preflight.Result {
	if r, ok := p.ready(); !ok {
		return r
	}
	who, err := p.aws.Caller(ctx)
	if err != nil {
		return preflight.Tell("who we are cannot be told, which serving does not need: %v", err)
	}
	return preflight.Pass("we are %s", who)
}

// roundtrip does with the key what the prober does: a key that writes is wrapped
// and unwrapped with, of one that only reads the permission is asked.
func (p *patient) roundtrip(ctx context.Context) preflight.Result {
	if r, ok := p.ready(); !ok {
		return r
	}
	if p.key.Role != keys.RoleWrite && p.aws != nil {
		return p.mayDecrypt(ctx)
	}
	canary := make([]byte, 32)
	_, _ = rand.Read(canary) // never fails (crypto/rand)
	plain := envelope.MarshalPlain(keys.BlobProbe, canary)
	defer plain.Destroy()
	begun := time.Now()
	w, err := p.kek.Wrap(ctx, plain, p.bound(p.cluster))
	wrapped := time.Since(begun)
	if err != nil {
		return p.refused(err)
	}
	begun = time.Now()
	u, err := p.kek.Unwrap(ctx, w.Blob, p.bound(p.cluster))
	unwrapped := time.Since(begun)
	if err != nil {
		return p.refused(err)
	}
	defer u.Plaintext.Destroy()
	if subtle.ConstantTimeCompare(u.Plaintext, plain) != 1 {
		return preflight.Fail("do not use this key or endpoint", "what was wrapped opens to other bytes")
	}
	p.blob = w.Blob
	return timed(wrapped, unwrapped, u.Material)
}

func timed(wrapped, unwrapped time.Duration, material string) preflight.Result {
	text := fmt.Sprintf("wrapped in %s, unwrapped in %s", wrapped.Round(100*time.Microsecond), unwrapped.Round(100*time.Microsecond))
	if max(wrapped, unwrapped) > slow {
		return preflight.Warn("look at the way to the KMS, and at its quota", "%s; kube-apiserver gives a call %s", text, kmsclient.Timeout)
	}
	if material != "" {
		text += ", material " + material[:min(12, len(material))]
	}
	return preflight.Pass("%s", text)
}

func (p *patient) mayDecrypt(ctx context.Context) preflight.Result {
	ok, err := p.aws.Allowed(ctx, awskms.Decrypt, p.bound(p.cluster))
	switch {
	case err != nil:
		return p.refused(err)
	case !ok:
		return preflight.Fail("allow kms:Decrypt on "+p.key.AWSKMS.KeyARN+" for kms:EncryptionContext:"+keys.ContextCluster+" "+p.cluster, "this identity may not decrypt under a key with role %s", p.key.Role)
	}
	return preflight.Pass("it may decrypt (dry run); a key with role %s is not wrapped with", p.key.Role)
}

// context proves that what is bound to this cluster opens for no other.
func (p *patient) context(ctx context.Context) preflight.Result {
	if p.blob == nil {
		return preflight.Skip("nothing was wrapped")
	}
	u, err := p.kek.Unwrap(ctx, p.blob, p.bound(p.foreignCluster()))
	switch class := keys.ClassOf(err); {
	case err == nil:
		u.Plaintext.Destroy()
		return preflight.Fail("do not use this key or endpoint: it does not bind the encryption context", "a blob of this cluster opens under the encryption context of another")
	case class == keys.ClassData || class == keys.ClassAuthorization:
		return preflight.Pass("a blob of this cluster does not open under the encryption context of another")
	}
	return failed(err)
}

// foreignCluster is a name that no cluster has: a dot in front is not allowed.
func (p *patient) foreignCluster() string { return ".not-" + p.cluster }

func (p *patient) localfile(context.Context) preflight.Result {
	if p.setup != nil {
		return failed(p.setup)
	}
	return preflight.Warn("use a key in a KMS for anything that matters", "the key is in the file %s: who reads this disk, or a backup of it, can read every Secret", p.key.LocalFile.Path)
}
