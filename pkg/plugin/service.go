package plugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/pkg/keys"
)

// Version is what Status reports for ever: kube-apiserver remembers the first
// one it accepted and takes any other, "v2beta1" included, for an error until
// its next restart (encryptionconfig.isKMSv2ProviderHealthyAndMaybeRotateDEK).
const Version = "v2"

// Limits of kube-apiserver, in bytes (envelope/kmsv2: KeyIDMaxSize,
// encryptedDEKSourceMaxSize, annotationsMaxSize).
const (
	maxKeyID       = 1024
	maxCiphertext  = 1024
	maxAnnotations = 32 << 10
	maxUID         = 256
	seedSize       = 32
)

// CallTimeout bounds every Encrypt and Decrypt. kube-apiserver gives 3 s by
// default; ending before it means that the error names the cause instead of
// DeadlineExceeded. The backend keeps it, for what is answered from memory needs
// no timer.
const CallTimeout = 2500 * time.Millisecond

// Detail is what an operation leaves for the audit log. None of it is secret.
type Detail struct {
	KEK       string // identity of the KEK
	LocalKEK  string // first 16 hex digits of the local KEK's id, "" if none
	RequestID string // of the remote call this operation waited for, "" if none
}

// Sealed is an encrypted DEK seed with all that opens it again.
type Sealed struct {
	Ciphertext  []byte
	KeyID       string
	Annotations map[string][]byte
	Detail      Detail
}

// OpenRequest is what kube-apiserver read from etcd: all of it hostile.
type OpenRequest struct {
	KeyID       string
	Ciphertext  []byte
	Annotations map[string][]byte
}

// Backend seals and opens DEK seeds. It is safe for concurrent use, honours ctx
// and answers within CallTimeout; its errors are of package keys.
type Backend interface {
	// KeyID is the key_id to report, from memory: it never blocks and makes no
	// remote call. An error means that the API server must stop writing.
	KeyID() (string, error)
	// Seal encrypts a 32-byte seed under the key that KeyID reports.
	Seal(ctx context.Context, seed keys.Secret) (Sealed, error)
	// Open decrypts what any instance with the same KEK sealed.
	Open(ctx context.Context, r OpenRequest) (keys.Secret, Detail, error)
}

// Call is one finished Encrypt or Decrypt, as the audit log wants it.
type Call struct {
	Op     string // "encrypt" or "decrypt"
	UID    string // the API server's id of the call
	KeyID  string
	Detail Detail
	Err    error
}

// Auditor records calls. An error refuses the call.
type Auditor interface {
	Audit(Call) error
}

// Service implements kmsapi.KeyManagementServiceServer.
type Service struct {
	kmsapi.UnsafeKeyManagementServiceServer
	backend Backend
	auditor Auditor
}

var _ kmsapi.KeyManagementServiceServer = (*Service)(nil)

// NewService serves a backend; every Encrypt and Decrypt goes to the auditor.
func NewService(b Backend, a Auditor) *Service { return &Service{backend: b, auditor: a} }

// Status answers from memory. Its healthz is never anything but "ok": with an
// unchanged key_id any other text makes the API server unhealthy and yet lets it
// write for ever (kubernetes/kubernetes#138950), so what must close is an error.
func (s *Service) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	id, err := s.backend.KeyID()
	if err != nil {
		return nil, toStatus(err)
	}
	return &kmsapi.StatusResponse{Version: Version, Healthz: "ok", KeyId: id}, nil
}

// Encrypt seals a DEK seed.
func (s *Service) Encrypt(ctx context.Context, r *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	seed := keys.Secret(r.GetPlaintext())
	defer seed.Destroy()
	call := Call{Op: "encrypt", UID: safeUID(r.GetUid())}
	defer s.auditPanic(&call)
	sealed, err := s.seal(ctx, r, seed)
	call.KeyID, call.Detail, call.Err = sealed.KeyID, sealed.Detail, err
	if err := s.finish(call); err != nil {
		return nil, err
	}
	return &kmsapi.EncryptResponse{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyID, Annotations: sealed.Annotations}, nil
}

func (s *Service) seal(ctx context.Context, r *kmsapi.EncryptRequest, seed keys.Secret) (Sealed, error) {
	if len(seed) != seedSize {
		return Sealed{}, fmt.Errorf("%w: plaintext has %d bytes, a DEK seed has %d", keys.ErrMalformed, len(seed), seedSize)
	}
	if err := checkUID(r.GetUid()); err != nil {
		return Sealed{}, err
	}
	sealed, err := s.backend.Seal(ctx, seed)
	if err != nil {
		return Sealed{Detail: sealed.Detail}, err
	}
	return sealed, checkSealed(sealed)
}

// Decrypt opens a DEK seed.
func (s *Service) Decrypt(ctx context.Context, r *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	call := Call{Op: "decrypt", UID: safeUID(r.GetUid()), KeyID: safeKeyID(r.GetKeyId())}
	defer s.auditPanic(&call)
	seed, detail, err := s.open(ctx, r)
	call.Detail, call.Err = detail, err
	if err := s.finish(call); err != nil {
		seed.Destroy()
		return nil, err
	}
	return &kmsapi.DecryptResponse{Plaintext: seed}, nil
}

func (s *Service) open(ctx context.Context, r *kmsapi.DecryptRequest) (keys.Secret, Detail, error) {
	if err := checkRequest(r); err != nil {
		return nil, Detail{}, err
	}
	seed, detail, err := s.backend.Open(ctx, OpenRequest{KeyID: r.GetKeyId(), Ciphertext: r.GetCiphertext(), Annotations: r.GetAnnotations()})
	if err != nil {
		return nil, detail, err
	}
	if len(seed) != seedSize {
		seed.Destroy()
		return nil, detail, fmt.Errorf("%w: what opened has %d bytes, a DEK seed has %d", keys.ErrContradiction, len(seed), seedSize)
	}
	return seed, detail, nil
}

// errPanic is what the audit log says of a call that ended in a panic.
var errPanic = errors.New("panic")

// auditPanic records a call that ends in a panic, which the interceptor then
// answers: it may have opened a seed, and no such call goes unrecorded.
func (s *Service) auditPanic(c *Call) {
	if p := recover(); p != nil {
		c.Err = errPanic
		_ = s.auditor.Audit(*c) // the call fails in any case
		panic(p)
	}
}

// finish audits a call and gives the error to answer with, if any.
func (s *Service) finish(c Call) error {
	auditErr := s.auditor.Audit(c)
	if c.Err != nil {
		return toStatus(c.Err)
	}
	if auditErr != nil {
		return toStatus(fmt.Errorf("%w: audit.onFailure is refuse and the audit log cannot be written: %w", keys.ErrNotReady, auditErr))
	}
	return nil
}
