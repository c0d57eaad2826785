package plugin

import (
	"fmt"

	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/pkg/keys"
)

// checkRequest bounds what came from etcd before anything parses it.
func checkRequest(r *kmsapi.DecryptRequest) error {
	switch n := len(r.GetKeyId()); {
	case n == 0:
		return fmt.Errorf("%w: key_id is empty", keys.ErrMalformed)
	case n > maxKeyID:
		return fmt.Errorf("%w: key_id has %d bytes, at most %d are allowed", keys.ErrMalformed, n, maxKeyID)
	}
	switch n := len(r.GetCiphertext()); {
	case n == 0:
		return fmt.Errorf("%w: ciphertext is empty", keys.ErrMalformed)
	case n > maxCiphertext:
		return fmt.Errorf("%w: ciphertext has %d bytes, at most %d are allowed", keys.ErrMalformed, n, maxCiphertext)
	}
	total := 0
	for k, v := range r.GetAnnotations() {
		total += len(k) + len(v)
	}
	if total > maxAnnotations {
		return fmt.Errorf("%w: annotations have %d bytes, at most %d are allowed", keys.ErrMalformed, total, maxAnnotations)
	}
	return checkUID(r.GetUid())
}

// checkUID bounds the API server's id of the call. It is never empty there
// (encryptionconfig: uuid.NewUUID), so an empty one is not the API server.
func checkUID(uid string) error {
	if uid == "" || len(uid) > maxUID {
		return fmt.Errorf("%w: uid has %d bytes, 1 to %d are allowed", keys.ErrMalformed, len(uid), maxUID)
	}
	return nil
}

// checkSealed keeps a defect of ours from being stored: kube-apiserver would
// refuse such an answer on every write (envelope/kmsv2.ValidateEncryptedObject).
func checkSealed(s Sealed) error {
	total := 0
	for k, v := range s.Annotations {
		total += len(k) + len(v)
	}
	if s.KeyID == "" || len(s.KeyID) > maxKeyID || len(s.Ciphertext) == 0 || len(s.Ciphertext) > maxCiphertext || total > maxAnnotations {
		return fmt.Errorf("%w: the sealed seed is outside the limits of kube-apiserver (key_id %d, ciphertext %d, annotations %d bytes)",
			keys.ErrContradiction, len(s.KeyID), len(s.Ciphertext), total)
	}
	return nil
}

// safeUID and safeKeyID bound what goes to the audit log from a request that
// was refused for its size.
func safeUID(s string) string { return s[:min(len(s), maxUID)] }

func safeKeyID(s string) string { return s[:min(len(s), 128)] }
