package fakekms

import (
	"crypto/rand"
	"net/http"
	"slices"
	"time"
)

const maxOnDemand = 25 // RotateKeyOnDemand, for each key

// operate does one operation; mu is held.
func (s *Server) operate(op, who, region string, in input) (map[string]any, *failure) {
	name := in.KeyId
	if op == "ReEncrypt" {
		if f := s.reEncryptFrom(who, region, in); f != nil {
			return nil, f
		}
		name, in.EncryptionContext = in.DestinationKeyId, in.DestinationEncryptionContext
	}
	k, err := s.find(region, name)
	if err != nil {
		return nil, noKey(name)
	}
	action := "kms:" + op
	if op == "ReEncrypt" {
		action = "kms:ReEncryptTo"
	}
	if !k.allowed(who, action, in.EncryptionContext) {
		return nil, denied(who, action)
	}
	switch op {
	case "Encrypt", "Decrypt", "GenerateDataKey", "ReEncrypt":
		return s.crypto(op, who, k, in)
	}
	return s.manage(op, k, in)
}

// reEncryptFrom is what ReEncrypt needs of its source; mu is held.
func (s *Server) reEncryptFrom(who, region string, in input) *failure {
	k, err := s.find(region, in.SourceKeyId)
	switch {
	case err != nil:
		return noKey(in.SourceKeyId)
	case !k.allowed(who, "kms:ReEncryptFrom", in.SourceEncryptionContext):
		return denied(who, "kms:ReEncryptFrom")
	}
	return k.usable()
}

func noKey(name string) *failure {
	return refuse("NotFoundException", "Key '"+name+"' does not exist")
}

func denied(who, action string) *failure {
	return refuse("AccessDeniedException", "User: "+who+" is not authorized to perform: "+action+" because no resource-based policy allows it")
}

// wouldSucceed is the answer to a dry run.
func wouldSucceed() *failure {
	return &failure{http.StatusPreconditionFailed, "DryRunOperationException", "The request would have succeeded"}
}

func (s *Server) crypto(op, who string, k *key, in input) (map[string]any, *failure) {
	if f := k.usable(); f != nil {
		return nil, f
	}
	if in.DryRun && (op != "Decrypt" || slices.Contains(in.DryRunModifiers, "IGNORE_CIPHERTEXT")) {
		return nil, wouldSucceed()
	}
	arn := k.arn()
	switch op {
	case "Encrypt":
		if n := len(in.Plaintext); n == 0 || n > 4096 {
			return nil, refuse("ValidationException", "plaintext must have 1 to 4096 bytes")
		}
		blob, err := k.seal(s.chosen(who, k), in.Plaintext, in.EncryptionContext)
		if err != nil {
			return nil, &failure{http.StatusInternalServerError, "KMSInternalException", err.Error()}
		}
		return map[string]any{"CiphertextBlob": blob, "KeyId": arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}, nil
	case "Decrypt":
		plain, mat, wrong, ok := k.open(in.CiphertextBlob, in.EncryptionContext)
		if wrong {
			return nil, refuse("IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation.")
		}
		if !ok {
			return nil, refuse("InvalidCiphertextException", "")
		}
		if in.DryRun {
			return nil, wouldSucceed()
		}
		return map[string]any{"Plaintext": plain, "KeyId": arn, "KeyMaterialId": mat, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}, nil
	case "GenerateDataKey":
		plain := make([]byte, max(in.NumberOfBytes, 32))
		_, _ = rand.Read(plain) // never fails (crypto/rand)
		mat := s.chosen(who, k)
		blob, err := k.seal(mat, plain, in.EncryptionContext)
		if err != nil {
			return nil, &failure{http.StatusInternalServerError, "KMSInternalException", err.Error()}
		}
		return map[string]any{"Plaintext": plain, "CiphertextBlob": blob, "KeyId": arn, "KeyMaterialId": mat}, nil
	}
	return map[string]any{"KeyId": arn}, nil
}

// chosen is the material of a wrap: the newest, or what the view of an
// eventually consistent service says.
func (s *Server) chosen(who string, k *key) string {
	if s.view == nil {
		return k.shared.newest()
	}
	i := s.view(who, s.counts.Principals[who], k.shared.history)
	return k.shared.history[min(max(i, 0), len(k.shared.history)-1)]
}

func (k *key) usable() *failure {
	switch {
	case k.state == Disabled:
		return refuse("DisabledException", "the key is disabled")
	case k.state != Enabled:
		return refuse("KMSInvalidStateException", "the key is in state "+k.state)
	case k.signOnly:
		return refuse("InvalidKeyUsageException", "the key usage is SIGN_VERIFY")
	}
	return nil
}

func (s *Server) manage(op string, k *key, in input) (map[string]any, *failure) {
	arn := k.arn()
	switch op {
	case "DescribeKey":
		return map[string]any{"KeyMetadata": s.describe(k)}, nil
	case "RotateKeyOnDemand":
		if k.shared.rotated >= maxOnDemand {
			return nil, refuse("LimitExceededException", "the on-demand rotation quota of the key is used up")
		}
		k.shared.add(true)
		return map[string]any{"KeyId": arn}, nil
	case "ListKeyRotations":
		return map[string]any{"Rotations": rotations(k, in.IncludeKeyMaterial == "ALL_KEY_MATERIAL"), "Truncated": false}, nil
	case "GetKeyRotationStatus":
		if k.noRotation {
			return map[string]any{"KeyId": arn, "KeyRotationEnabled": false}, nil
		}
		return map[string]any{"KeyId": arn, "KeyRotationEnabled": true, "RotationPeriodInDays": 365}, nil
	case "DisableKey":
		k.state = Disabled
	case "EnableKey":
		k.state = Enabled
	case "ScheduleKeyDeletion":
		k.state, k.deleted = PendingDeletion, time.Now().AddDate(0, 0, max(in.PendingWindowInDays, 7))
		return map[string]any{"KeyId": arn, "KeyState": k.state, "DeletionDate": epoch(k.deleted)}, nil
	case "CancelKeyDeletion":
		k.state, k.deleted = Disabled, time.Time{}
		return map[string]any{"KeyId": arn}, nil
	case "CreateGrant":
		if in.DryRun {
			return nil, wouldSucceed()
		}
		return map[string]any{"GrantId": randomHex(32)}, nil
	default:
		return nil, refuse("UnknownOperationException", op+" is not modelled")
	}
	return map[string]any{}, nil
}

func (s *Server) describe(k *key) map[string]any {
	d := map[string]any{"KeyId": k.id, "Arn": k.arn(), "AWSAccountId": k.account, "KeyState": k.state, "Enabled": k.state == Enabled,
		"KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT", "Origin": "AWS_KMS", "KeyManager": "CUSTOMER",
		"MultiRegion": len(k.id) > 4 && k.id[:4] == "mrk-", "CurrentKeyMaterialId": k.shared.newest(), "CreationDate": epoch(k.shared.dates[0])}
	if !k.deleted.IsZero() {
		d["DeletionDate"] = epoch(k.deleted)
	}
	if k.signOnly {
		d["KeyUsage"] = "SIGN_VERIFY"
	}
	return d
}

// rotations lists the history; the first material is no rotation.
func rotations(k *key, first bool) []map[string]any {
	out := []map[string]any{}
	for i, m := range k.shared.history {
		if i == 0 && !first {
			continue
		}
		state := "NON_CURRENT"
		if i == len(k.shared.history)-1 {
			state = "CURRENT"
		}
		e := map[string]any{"KeyId": k.id, "KeyMaterialId": m, "KeyMaterialState": state}
		if i > 0 {
			e["RotationDate"], e["RotationType"] = epoch(k.shared.dates[i]), "ON_DEMAND"
		}
		out = append(out, e)
	}
	return out
}

func epoch(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
