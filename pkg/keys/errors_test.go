package keys_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"kms-plugin.io/pkg/keys"
)

func TestClassNames(t *testing.T) {
	for c, want := range map[keys.Class]string{
		keys.ClassNone: "ok", keys.ClassCanceled: "canceled", keys.ClassData: "data", keys.ClassOutage: "outage",
		keys.ClassCredential: "credential", keys.ClassAuthorization: "authorization", keys.ClassKeyState: "key-state",
		7: "class(7)", 255: "class(255)",
	} {
		if got := c.String(); got != want {
			t.Errorf("Class(%d) = %q, want %q", uint8(c), got, want)
		}
	}
}

func TestClassOf(t *testing.T) {
	denied := &keys.Error{Class: keys.ClassAuthorization, Err: context.Canceled}
	for _, c := range []struct {
		name string
		err  error
		want keys.Class
	}{
		{"nil", nil, keys.ClassNone},
		{"direct", denied, keys.ClassAuthorization},
		{"wrapped", fmt.Errorf("a: %w", fmt.Errorf("b: %w", denied)), keys.ClassAuthorization},
		{"joined", errors.Join(errors.New("x"), denied), keys.ClassAuthorization},
		{"second of two", fmt.Errorf("%w and %w", keys.ErrBusy, denied), keys.ClassAuthorization},
		{"in a shut key", &keys.ShutError{Key: "k", Class: keys.ClassOutage, Err: denied}, keys.ClassAuthorization},
		{"outermost wins", &keys.Error{Class: keys.ClassOutage, Err: denied}, keys.ClassOutage},
		{"cancelled", fmt.Errorf("a: %w", context.Canceled), keys.ClassCanceled},
		{"deadline", context.DeadlineExceeded, keys.ClassOutage},
		{"anything", errors.New("access denied"), keys.ClassOutage},
		{"text that looks like a class", errors.New("authorization"), keys.ClassOutage},
	} {
		if got := keys.ClassOf(c.err); got != c.want {
			t.Errorf("%s: ClassOf = %s, want %s", c.name, got, c.want)
		}
	}
}

func TestErrorMatching(t *testing.T) {
	cause := errors.New("connection reset")
	remote := &keys.Error{Class: keys.ClassOutage, Op: keys.OpUnwrap, Key: "awskms:x", Code: "Throttling", Region: "eu", RequestID: "r1", Hint: "wait", Err: cause}
	shut := &keys.ShutError{Key: "prod", Class: keys.ClassOutage, Err: remote}
	err := fmt.Errorf("open: %w", shut)
	var s *keys.ShutError
	var e *keys.Error
	if !errors.As(err, &s) || s != shut || !errors.As(err, &e) || e != remote || !errors.Is(err, cause) {
		t.Errorf("As gives %v and %v, Is %t; want all of the chain", s, e, errors.Is(err, cause))
	}
	for _, no := range []error{keys.ErrMalformed, keys.ErrContradiction, keys.ErrNotReady, keys.ErrBusy, keys.ErrUnknownKey, context.Canceled} {
		if errors.Is(err, no) {
			t.Errorf("%v is %v", err, no)
		}
	}
	if errors.As(fmt.Errorf("x: %w", cause), &e) {
		t.Error("any error is an *Error")
	}
}

func TestErrorTexts(t *testing.T) {
	cause := errors.New("denied by policy")
	full := keys.Error{Class: keys.ClassAuthorization, Op: keys.OpWrap, Key: "awskms:x", Code: "AccessDenied", Region: "eu", RequestID: "r", Hint: "h", Err: cause}
	bare := keys.Error{Class: keys.ClassOutage, Op: keys.OpUnwrap, Key: "awskms:x"}
	for want, err := range map[string]error{
		"wrap with awskms:x: authorization (AccessDenied): denied by policy": &full,
		"unwrap with awskms:x: outage":                                       &bare,
		`key "prod" is closed (outage): unwrap with awskms:x: outage`:        &keys.ShutError{Key: "prod", Class: keys.ClassOutage, Err: &bare},
	} {
		if got := err.Error(); got != want {
			t.Errorf("error %q, want %q", got, want)
		}
	}
	if errors.Unwrap(&bare) != nil || errors.Unwrap(&full) != cause {
		t.Error("Unwrap is not the cause")
	}
}
