package plugin

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"kms-plugin.io/pkg/keys"
)

// Outcome is the one mapping from an error to its gRPC code and to the word the
// audit log has for it. kube-apiserver treats all codes alike; people and
// metrics do not.
func Outcome(err error) (codes.Code, string) {
	if err == nil {
		return codes.OK, "ok"
	}
	var shut *keys.ShutError
	if errors.As(err, &shut) {
		code, _ := classCode(shut.Class)
		return code, "closed"
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return s.code, s.word
		}
	}
	var remote *keys.Error
	if errors.As(err, &remote) {
		return classCode(remote.Class)
	}
	switch {
	case errors.Is(err, context.Canceled):
		return codes.Canceled, "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded, "timeout"
	}
	return codes.Internal, "internal"
}

var sentinels = []struct {
	err  error
	code codes.Code
	word string
}{
	{keys.ErrMalformed, codes.InvalidArgument, "malformed"},
	{keys.ErrContradiction, codes.InvalidArgument, "contradiction"},
	{keys.ErrUnknownKey, codes.FailedPrecondition, "unknown-key"},
	{keys.ErrNotReady, codes.Unavailable, "not-ready"},
	{keys.ErrBusy, codes.ResourceExhausted, "busy"},
}

func classCode(c keys.Class) (codes.Code, string) {
	switch c {
	case keys.ClassCanceled:
		return codes.Canceled, c.String()
	case keys.ClassData:
		return codes.InvalidArgument, c.String()
	case keys.ClassCredential:
		return codes.Unauthenticated, c.String()
	case keys.ClassAuthorization:
		return codes.PermissionDenied, c.String()
	case keys.ClassKeyState:
		return codes.FailedPrecondition, c.String()
	}
	return codes.Unavailable, c.String()
}

// toStatus keeps the text: it names the cause and holds nothing secret.
func toStatus(err error) error {
	code, _ := Outcome(err)
	return status.Error(code, err.Error())
}
