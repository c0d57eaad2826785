package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/plugin"
)

// remote is a failed remote call of a class.
func remote(c keys.Class) error {
	return fmt.Errorf("open: %w", &keys.Error{Class: c, Op: keys.OpUnwrap, Key: "fake:1", Err: errors.New("cause")})
}

func shut(c keys.Class) error {
	return fmt.Errorf("open: %w", &keys.ShutError{Key: "prod", Class: c, Err: remote(c)})
}

// outcomes is every error the API server can be answered with.
var outcomes = []struct {
	name string
	err  error
	code codes.Code
	word string
}{
	{"none", nil, codes.OK, "ok"},
	{"malformed", fmt.Errorf("a: %w", keys.ErrMalformed), codes.InvalidArgument, "malformed"},
	{"contradiction", fmt.Errorf("a: %w", keys.ErrContradiction), codes.InvalidArgument, "contradiction"},
	{"unknown key", fmt.Errorf("a: %w", keys.ErrUnknownKey), codes.FailedPrecondition, "unknown-key"},
	{"not ready", fmt.Errorf("a: %w", keys.ErrNotReady), codes.Unavailable, "not-ready"},
	{"busy", fmt.Errorf("a: %w", keys.ErrBusy), codes.ResourceExhausted, "busy"},
	{"remote canceled", remote(keys.ClassCanceled), codes.Canceled, "canceled"},
	{"remote data", remote(keys.ClassData), codes.InvalidArgument, "data"},
	{"remote outage", remote(keys.ClassOutage), codes.Unavailable, "outage"},
	{"remote credential", remote(keys.ClassCredential), codes.Unauthenticated, "credential"},
	{"remote authorization", remote(keys.ClassAuthorization), codes.PermissionDenied, "authorization"},
	{"remote key state", remote(keys.ClassKeyState), codes.FailedPrecondition, "key-state"},
	{"remote of the future", remote(99), codes.Unavailable, "class(99)"},
	{"shut by an outage", shut(keys.ClassOutage), codes.Unavailable, "closed"},
	{"shut by credentials", shut(keys.ClassCredential), codes.Unauthenticated, "closed"},
	{"shut by a denial", shut(keys.ClassAuthorization), codes.PermissionDenied, "closed"},
	{"shut by its state", shut(keys.ClassKeyState), codes.FailedPrecondition, "closed"},
	{"shut before not ready", errors.Join(keys.ErrNotReady, shut(keys.ClassAuthorization)), codes.PermissionDenied, "closed"},
	{"contradiction before its cause", fmt.Errorf("%w: %w", keys.ErrContradiction, remote(keys.ClassData)), codes.InvalidArgument, "contradiction"},
	{"remote before its cause", &keys.Error{Class: keys.ClassOutage, Err: context.DeadlineExceeded}, codes.Unavailable, "outage"},
	{"cancelled", fmt.Errorf("a: %w", context.Canceled), codes.Canceled, "canceled"},
	{"too late", fmt.Errorf("a: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "timeout"},
	{"not foreseen", errors.New("x"), codes.Internal, "internal"},
}

func TestOutcome(t *testing.T) {
	for _, c := range outcomes {
		if code, word := plugin.Outcome(c.err); code != c.code || word != c.word {
			t.Errorf("%s: Outcome = %s, %q; want %s, %q", c.name, code, word, c.code, c.word)
		}
	}
}
