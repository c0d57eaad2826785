package bootstrap_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"kms-plugin.io/pkg/keys"
)

type statement struct {
	Sid, Effect string
	Principal   any
	Action      []string
	Resource    string
	Condition   map[string]map[string]any
}

// allowed judges a call as IAM does, as far as these policies go: a deny wins,
// then an allow whose conditions hold.
func allowed(t *testing.T, policy []byte, action string, context keys.Context) bool {
	t.Helper()
	var p struct {
		Version   string
		Statement []statement
	}
	if err := json.Unmarshal(policy, &p); err != nil || p.Version != "2012-10-17" {
		t.Fatalf("%v, version %q", err, p.Version)
	}
	ok := false
	for _, s := range p.Statement {
		if !slices.Contains(s.Action, action) || !holds(t, s.Condition, context) {
			continue
		}
		if s.Effect == "Deny" {
			return false
		}
		ok = true
	}
	return ok
}

func holds(t *testing.T, conditions map[string]map[string]any, context keys.Context) bool {
	t.Helper()
	for op, tests := range conditions {
		for key, want := range tests {
			var values []string
			switch w := want.(type) {
			case string:
				values = []string{w}
			case []any:
				for _, v := range w {
					values = append(values, v.(string))
				}
			}
			name, one := strings.CutPrefix(key, "kms:EncryptionContext:")
			switch {
			case op == "StringEquals" && one:
				if v, present := context[name]; !present || !slices.Contains(values, v) {
					return false
				}
			case op == "ForAllValues:StringEquals" && key == "kms:EncryptionContextKeys":
				for have := range context {
					if !slices.Contains(values, have) {
						return false
					}
				}
			default:
				t.Fatalf("condition %s %s is not known to this test", op, key)
			}
		}
	}
	return true
}

// Both policies let the plugin do its work, and nothing else.
func TestPolicies(t *testing.T) {
	all := files(t, cases()["new"])
	for _, path := range []string{"aws/iam-policy.json", "aws/key-policy.json"} {
		policy := data(t, all, path)
		for _, action := range []string{"kms:Encrypt", "kms:Decrypt"} {
			for _, blob := range []keys.BlobType{keys.BlobLocalKEK, keys.BlobSeed, keys.BlobProbe} {
				if !allowed(t, policy, action, keys.NewContext("prod-eu-1", blob, nil)) {
					t.Errorf("%s refuses %s of type %s, which the plugin needs", path, action, blob)
				}
			}
			if !allowed(t, policy, action, keys.NewContext("prod-eu-1", keys.BlobProbe, nil).WithAudit("a chain:1:its end")) {
				t.Errorf("%s refuses %s of a probe that carries the end of the audit log: the key would close", path, action)
			}
			for name, context := range map[string]keys.Context{
				"no context":      nil,
				"another cluster": keys.NewContext("prod-eu-2", keys.BlobSeed, nil),
				"another case":    keys.NewContext("Prod-EU-1", keys.BlobSeed, nil),
				"another type":    {keys.ContextCluster: "prod-eu-1", keys.ContextType: "backup"},
				"no type":         {keys.ContextCluster: "prod-eu-1"},
				"a further pair":  keys.NewContext("prod-eu-1", keys.BlobSeed, map[string]string{"a": "b"}),
			} {
				if allowed(t, policy, action, context) {
					t.Errorf("%s allows %s with %s", path, action, name)
				}
			}
		}
		for _, action := range []string{"kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:CreateGrant", "kms:GenerateDataKey", "kms:*"} {
			if allowed(t, policy, action, keys.NewContext("prod-eu-1", keys.BlobSeed, nil)) {
				t.Errorf("%s allows %s", path, action)
			}
		}
		if bytes.Contains(policy, []byte("*\",")) && bytes.Contains(policy, []byte("kms:*")) {
			t.Errorf("%s has a wildcard action", path)
		}
	}
	if p := data(t, all, "aws/key-policy.json"); !allowed(t, p, "kms:PutKeyPolicy", nil) || !bytes.Contains(p, []byte(`"arn:aws:iam::111122223333:root"`)) {
		t.Error("the key policy would leave the key without anyone to look after it")
	}
	if p := data(t, files(t, cases()["existing"]), "aws/key-policy.json"); !bytes.Contains(p, []byte("PUT-THE-ROLE-OF-THE-NODES-HERE")) {
		t.Error("without a role the key policy must be one that AWS refuses")
	}
}
