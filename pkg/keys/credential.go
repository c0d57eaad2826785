package keys

import (
	"context"
	"time"
)

// Credential describes what a KEK reaches its KMS by; never a value of it.
type Credential struct {
	Kind    string    // instance-role, container, web-identity, assume-role, process, sso, static, other
	Source  string    // where it comes from: a file, host, program or role
	Expires time.Time // zero: there is none yet, or it does not expire
	Err     error     // of the last try to renew it; nil after a good one
}

// Credentialed is a KEK with a credential of its own, which it can renew ahead of
// its end, so that no call waits for that.
type Credentialed interface {
	Credential() Credential
	// KeepCredential fetches the first credential and renews it until ctx ends.
	// changed is called after each try and must not block.
	KeepCredential(ctx context.Context, changed func())
}
