package keys

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Class says what an error means for the key, and so what the health of the
// key makes of it. Providers map every error of their SDK to exactly one.
type Class uint8

const (
	// ClassNone: no error.
	ClassNone Class = iota
	// ClassCanceled: the caller gave up; says nothing about the key.
	ClassCanceled
	// ClassData: this blob is damaged, of another key or of another context.
	// Says nothing about the key, and no other region would answer otherwise.
	ClassData
	// ClassOutage: the KMS could not be reached, did not answer in time, is
	// throttling or reports a fault of its own. May heal by itself.
	ClassOutage
	// ClassCredential: who we are is not accepted (expired, unknown, bad
	// signature, none to be had).
	ClassCredential
	// ClassAuthorization: who we are is known and may not do this.
	ClassAuthorization
	// ClassKeyState: the key is disabled, pending deletion, deleted, not there
	// or cannot do this operation.
	ClassKeyState
)

var classNames = [...]string{"ok", "canceled", "data", "outage", "credential", "authorization", "key-state"}

// String is the class as metrics, logs and the audit log print it.
func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// What a request can fail with before, or without, asking a KEK. ErrUnknownKey
// belongs to them.
var (
	// ErrMalformed is returned when what came from etcd is not data of this
	// plugin: cut short, damaged, of an unknown format or of the wrong type.
	ErrMalformed = errors.New("not data of this plugin")
	// ErrContradiction is returned when well-formed parts do not belong
	// together: key_id, header, ciphertext, cluster, what the cloud confirmed.
	ErrContradiction = errors.New("stored parts contradict each other")
	// ErrNotReady is returned while no key is available yet.
	ErrNotReady = errors.New("not ready")
	// ErrBusy is returned when too many requests wait for the KMS already.
	ErrBusy = errors.New("too many requests wait for the KMS")
)

// ShutError is returned while a key must not be used because its KMS denied it,
// or was out of reach, for longer than its limit.
type ShutError struct {
	Key   string // name of the ring entry
	Class Class
	Err   error // the last answer
}

func (e *ShutError) Error() string {
	return fmt.Sprintf("key %q is closed (%s): %v", e.Key, e.Class, e.Err)
}

func (e *ShutError) Unwrap() error { return e.Err }

// Op names a remote operation, as metrics and errors print it.
type Op string

// The two remote operations.
const (
	OpWrap   Op = "wrap"
	OpUnwrap Op = "unwrap"
)

// Error is a remote operation that failed. Its text names the key and the
// cause and never holds key bytes, plaintext or ciphertext.
type Error struct {
	Class     Class
	Op        Op
	Key       string // Identity of the KEK
	Code      string // the provider's error code, "" if it never answered
	Region    string
	RequestID string
	Hint      string // what to do about it: one sentence, or ""
	Absent    bool   // with ClassKeyState: there is no such key where it was asked
	Err       error  // the cause
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s with %s: %s", e.Op, e.Key, e.Class)
	if e.Code != "" {
		fmt.Fprintf(&b, " (%s)", e.Code)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// ClassOf tells the class of any error. Without an *Error in its chain a
// cancelled context is ClassCanceled; everything else, deadlines included, is
// ClassOutage: what is not understood must not count as a denial.
func ClassOf(err error) Class {
	var e *Error
	switch {
	case err == nil:
		return ClassNone
	case errors.As(err, &e):
		return e.Class
	case errors.Is(err, context.Canceled):
		return ClassCanceled
	}
	return ClassOutage
}
