package bootstrap

import (
	"encoding/json"
	"fmt"

	"kms-plugin.io/pkg/keys"
)

// The policies of AWS. The plugin itself needs Encrypt and Decrypt, with the
// encryption context it always sends (package keys): with another cluster's id, or
// with any further pair, it is refused. That refusal, not the plugin, is what keeps
// two clusters under one key apart.
//
// Statements that deny are there because allowing somewhere else would be enough
// otherwise: ReEncrypt moves a wrapped key to a key of somebody else, a grant
// outlives the policy.

const policyVersion = "2012-10-17"

type policy struct {
	Version   string
	Statement []statement
}

type statement struct {
	Sid       string
	Effect    string
	Principal any `json:",omitempty"`
	Action    []string
	Resource  string
	Condition map[string]map[string]any `json:",omitempty"`
}

var (
	use    = []string{"kms:Encrypt", "kms:Decrypt"}
	look   = []string{"kms:DescribeKey", "kms:GetKeyRotationStatus"} // asked by preflight only
	denied = []string{"kms:CreateGrant", "kms:ReEncryptFrom", "kms:ReEncryptTo"}
	// administer is what it takes to look after a key, and nothing that uses it.
	administer = []string{"kms:CancelKeyDeletion", "kms:DescribeKey", "kms:DisableKey", "kms:DisableKeyRotation", "kms:EnableKey",
		"kms:EnableKeyRotation", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListGrants", "kms:ListKeyPolicies", "kms:ListKeyRotations",
		"kms:ListResourceTags", "kms:PutKeyPolicy", "kms:ReplicateKey", "kms:RetireGrant", "kms:RevokeGrant", "kms:RotateKeyOnDemand",
		"kms:ScheduleKeyDeletion", "kms:TagResource", "kms:UntagResource", "kms:UpdateKeyDescription", "kms:UpdatePrimaryRegion"}
)

// bound is the condition on the encryption context. ForAllValues alone would be
// met by a call without any context; StringEquals is not.
func bound(p Params) map[string]map[string]any {
	const name = "kms:EncryptionContext:"
	return map[string]map[string]any{
		"StringEquals": {
			name + keys.ContextCluster: p.ClusterID,
			name + keys.ContextType:    []string{keys.BlobLocalKEK.String(), keys.BlobSeed.String(), keys.BlobProbe.String()},
		},
		"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": []string{keys.ContextAudit, keys.ContextCluster, keys.ContextType}},
	}
}

// iamPolicy is for the role of the nodes.
func iamPolicy(p Params) []byte {
	return encodePolicy(
		statement{Sid: "KMSPluginUse", Effect: "Allow", Action: use, Resource: p.KeyARN, Condition: bound(p)},
		statement{Sid: "KMSPluginPreflight", Effect: "Allow", Action: look, Resource: p.KeyARN},
		statement{Sid: "KMSPluginNever", Effect: "Deny", Action: denied, Resource: p.KeyARN},
	)
}

// keyPolicy is for a key that serves this cluster alone. In it "*" is the key
// itself. The account looks after the key and cannot use it, unless it changes this
// policy, which its audit log shows.
func keyPolicy(p Params) []byte {
	m := keyARN.FindStringSubmatch(p.KeyARN)
	account := map[string]string{"AWS": fmt.Sprintf("arn:%s:iam::%s:root", m[1], m[3])}
	role := map[string]string{"AWS": p.Role()}
	return encodePolicy(
		statement{Sid: "Administer", Effect: "Allow", Principal: account, Action: administer, Resource: "*"},
		statement{Sid: "KMSPluginUse", Effect: "Allow", Principal: role, Action: use, Resource: "*", Condition: bound(p)},
		statement{Sid: "KMSPluginPreflight", Effect: "Allow", Principal: role, Action: look, Resource: "*"},
		statement{Sid: "Never", Effect: "Deny", Principal: "*", Action: denied, Resource: "*"},
	)
}

// Role is the role of the nodes, or a name that AWS refuses, so that a policy with
// it cannot come into force.
func (p Params) Role() string {
	if p.NodeRole != "" {
		return p.NodeRole
	}
	m := keyARN.FindStringSubmatch(p.KeyARN)
	if m == nil {
		return ""
	}
	return fmt.Sprintf("arn:%s:iam::%s:role/PUT-THE-ROLE-OF-THE-NODES-HERE", m[1], m[3])
}

func encodePolicy(s ...statement) []byte {
	b, err := json.MarshalIndent(policy{policyVersion, s}, "", "  ")
	if err != nil {
		panic(err) // unreachable: plain values
	}
	return append(b, '\n')
}
