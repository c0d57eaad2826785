package stored

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func field(num protowire.Number, v string) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), []byte(v))
}

func object(parts ...[]byte) string { return string(bytes.Join(parts, nil)) }

func TestClassify(t *testing.T) {
	whole := object(field(1, "data"), field(2, "id"), field(3, "source"))
	badType := append([]byte(whole), protowire.AppendVarint(protowire.AppendTag(nil, 5, protowire.VarintType), 7)...)
	tests := map[string]struct {
		value  string
		kind   Kind
		name   string
		reason string
	}{
		"protobuf":             {"k8s\x00abc", Plain, "", ""},
		"json":                 {`{"kind":"x"}`, Plain, "", ""},
		"cbor":                 {"\xd9\xd9\xf7\xa1", Plain, "", ""},
		"a number":             {"1234", Other, "", ""},
		"nothing":              {"", Other, "", ""},
		"almost a prefix":      {"k8s:encx", Other, "", ""},
		"kms v2":               {"k8s:enc:kms:v2:n-1:" + whole, KMSv2, "n-1", ""},
		"kms v2, no name":      {"k8s:enc:kms:v2:" + strings.ReplaceAll(whole, ":", ""), Broken, "", "no name"},
		"kms v2, no key_id":    {"k8s:enc:kms:v2:n:" + object(field(1, "d"), field(3, "s")), Broken, "n", "no key_id"},
		"kms v2, no data":      {"k8s:enc:kms:v2:n:" + object(field(2, "i"), field(3, "s")), Broken, "n", "no encrypted data"},
		"kms v2, no source":    {"k8s:enc:kms:v2:n:" + object(field(1, "d"), field(2, "i")), Broken, "n", "no encrypted DEK source"},
		"kms v2, source type":  {"k8s:enc:kms:v2:n:" + string(badType), Broken, "n", "DEK source type 7"},
		"kms v2, cut":          {"k8s:enc:kms:v2:n:" + whole[:len(whole)-2], Broken, "n", "not an EncryptedObject"},
		"kms v2, more":         {"k8s:enc:kms:v2:n:" + whole + string(field(6, "x")), Broken, "n", "not an EncryptedObject"},
		"kms v2, annotation":   {"k8s:enc:kms:v2:n:" + whole + string(field(4, "\xff")), Broken, "n", "not an EncryptedObject"},
		"kms v1":               {"k8s:enc:kms:v1:n:" + strings.Repeat("x", 40), KMSv1, "n", ""},
		"aescbc":               {"k8s:enc:aescbc:v1:key1:" + strings.Repeat("x", 32), AESCBC, "key1", ""},
		"aescbc, too short":    {"k8s:enc:aescbc:v1:key1:" + strings.Repeat("x", 31), Broken, "key1", "shorter than any aescbc"},
		"aesgcm":               {"k8s:enc:aesgcm:v1:a/b c:" + strings.Repeat("x", 28), AESGCM, "a/b c", ""},
		"secretbox":            {"k8s:enc:secretbox:v1:k:" + strings.Repeat("x", 40), Secretbox, "k", ""},
		"unknown provider":     {"k8s:enc:rot13:v1:k:" + strings.Repeat("x", 40), Broken, "", "does not have"},
		"kms v3":               {"k8s:enc:kms:v3:k:" + strings.Repeat("x", 40), Broken, "", "does not have"},
		"only the first words": {"k8s:enc:", Broken, "", "does not have"},
	}
	for name, tt := range tests {
		v := Classify([]byte(tt.value))
		if v.Kind != tt.kind || string(v.Name) != tt.name || !strings.Contains(v.Reason, tt.reason) || (v.Reason == "") != (tt.reason == "") {
			t.Errorf("%s: %s, name %q, reason %q; want %s, %q, %q", name, v.Kind, v.Name, v.Reason, tt.kind, tt.name, tt.reason)
		}
	}
}

// The values of kubernetes test/integration/controlplane/transformation
// (testKMSv2ProviderLegacyData): written by 1.27 and 1.28, where the plugin's
// ciphertext is the base64 of the DEK source.
func TestUpstreamGoldenValues(t *testing.T) {
	for file, want := range map[string]struct {
		source DEKSource
		name   string
	}{
		"upstream-v1.27-dek.b64":  {DEK, "dek-source-aes-gcm-key"},
		"upstream-v1.28-seed.b64": {DEKSeed, "dek-source-hkdf-sha256-xnonce-aes-gcm-seed"},
	} {
		text, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		value, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
		if err != nil {
			t.Fatal(err)
		}
		v := Classify(value)
		if v.Kind != KMSv2 || string(v.Name) != "kms-provider" || string(v.Object.KeyID) != "1" || v.Object.Source != want.source {
			t.Fatalf("%s: %+v", file, v)
		}
		if got := v.Object.Annotations(); len(got) != 1 || string(v.Object.Annotation("local-kek.kms.kubernetes.io")) != "encrypted-local-kek" {
			t.Errorf("%s: annotations %q", file, got)
		}
		source, err := base64.StdEncoding.DecodeString(string(v.Object.EncryptedDEKSource))
		if err != nil {
			t.Fatal(err)
		}
		key := "/43da1478-5e9c-4ef3-a92a-2b19d540c8a5/registry/secrets/kms-v2-legacy-data/" + want.name
		plain, err := v.Object.Decrypt(source, []byte(key))
		if err != nil || !bytes.Contains(plain, []byte(want.name)) || Classify(plain).Kind != Plain {
			t.Errorf("%s opens to %.40q, %v", file, plain, err)
		}
		if _, err := v.Object.Decrypt(source, []byte(key+"x")); err == nil {
			t.Errorf("%s opens under another etcd key", file)
		}
	}
}

func TestDecryptRefuses(t *testing.T) {
	for name, o := range map[string]Object{
		"seed, no info":  {Data: make([]byte, 31), Source: DEKSeed},
		"seed, no nonce": {Data: make([]byte, 32+27), Source: DEKSeed},
		"dek, no tag":    {Data: make([]byte, 27)},
	} {
		if _, err := o.Decrypt(make([]byte, 32), []byte("/k")); err == nil || !strings.Contains(err.Error(), "too short") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (&Object{Data: make([]byte, 60)}).Decrypt(make([]byte, 5), nil); err == nil {
		t.Error("a DEK of 5 bytes is taken")
	}
	// A DEK as 1.27 had it, with an AES-GCM of our own.
	block, _ := aes.NewCipher(make([]byte, 32))
	gcm, _ := cipher.NewGCM(block)
	nonce := make([]byte, 12)
	o := Object{Data: gcm.Seal(nonce, nonce, []byte("k8s\x00"), []byte("/k"))}
	if got, err := o.Decrypt(make([]byte, 32), []byte("/k")); err != nil || string(got) != "k8s\x00" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestParseKey(t *testing.T) {
	for key, want := range map[string]Key{
		"/registry/secrets/default/a":                                {Resource: GroupResource{"", "secrets"}, Known: true, Place: 1},
		"/registry/deployments/default/a":                            {Resource: GroupResource{"apps", "deployments"}, Known: true, Place: 1},
		"/registry/services/specs/default/kubernetes":                {Resource: GroupResource{"", "services"}, Known: true, Place: 2},
		"/registry/services/endpoints/default/kubernetes":            {Resource: GroupResource{"", "endpoints"}, Known: true, Place: 2},
		"/registry/minions/n1":                                       {Resource: GroupResource{"", "nodes"}, Known: true, Place: 1},
		"/registry/controllers/default/rc":                           {Resource: GroupResource{"", "replicationcontrollers"}, Known: true, Place: 1},
		"/registry/ingress/default/i":                                {Resource: GroupResource{"networking.k8s.io", "ingresses"}, Known: true, Place: 1},
		"/registry/example.com/widgets/default/w":                    {Resource: GroupResource{"example.com", "widgets"}, Known: true, Place: 2},
		"/registry/example.com/secrets/default/w":                    {Resource: GroupResource{"example.com", "secrets"}, Known: true, Place: 2},
		"/registry/apiextensions.k8s.io/customresourcedefinitions/x": {Resource: GroupResource{"apiextensions.k8s.io", "customresourcedefinitions"}, Known: true, Place: 2},
		"/registry/masterleases/10.0.0.1":                            {Resource: GroupResource{"", "masterleases"}, Exempt: true, Known: true},
		"/registry/ranges/serviceips":                                {Resource: GroupResource{"", "ranges/serviceips"}, Exempt: true, Known: true},
		"compact_rev_key":                                            {Resource: GroupResource{"", "compact_rev_key"}, Exempt: true, Known: true},
		"/registry/newthings/default/a":                              {Resource: GroupResource{"", "newthings"}},
		"/registry/nodot/x":                                          {Resource: GroupResource{"", "nodot"}},
		"/calico/x":                                                  {Resource: GroupResource{"", "(outside /registry)"}, Outside: true},
		"/registryx/secrets/a/b":                                     {Resource: GroupResource{"", "(outside /registry)"}, Outside: true},
		"/registry":                                                  {Resource: GroupResource{"", "(outside /registry)"}, Outside: true},
		"":                                                           {Resource: GroupResource{"", "(outside /registry)"}, Outside: true},
	} {
		if got := ParseKey([]byte(key), "/registry"); got != want {
			t.Errorf("%q: %+v, want %+v", key, got, want)
		}
	}
	if got := ParseKey([]byte("/k8s/prod/secrets/a/b"), "/k8s/prod"); got.Resource.Resource != "secrets" || !got.Known {
		t.Errorf("another prefix: %+v", got)
	}
}

func TestGroupResource(t *testing.T) {
	for _, s := range []string{"secrets", "deployments.apps", "widgets.example.com", "*.*", "*.apps"} {
		if got := ParseGroupResource(s).String(); got != s {
			t.Errorf("%q becomes %q", s, got)
		}
	}
	if got := ParseGroupResource("a.b.c"); got.Resource != "a" || got.Group != "b.c" {
		t.Errorf("%+v", got)
	}
}

// Whatever is in etcd, reading it ends, and a value of KMS v2 has what the API
// server demands.
func FuzzClassify(f *testing.F) {
	f.Add([]byte("k8s:enc:kms:v2:n:"+object(field(1, "d"), field(2, "i"), field(3, "s"), field(4, object(field(1, "a.b"), field(2, "v"))))), []byte("/registry/secrets/a/b"))
	f.Add([]byte("k8s:enc:aescbc:v1:key1:0123456789abcdef0123456789abcdef"), []byte("/registry/example.com/x/y"))
	f.Add([]byte("k8s\x00"), []byte("compact_rev_key"))
	f.Fuzz(func(t *testing.T, value, key []byte) {
		v := Classify(value)
		if (v.Kind == Broken) != (v.Reason != "") {
			t.Fatalf("kind %s with reason %q", v.Kind, v.Reason)
		}
		if v.Kind.Encrypted() && !bytes.HasPrefix(value, []byte("k8s:enc:")) {
			t.Fatalf("%s", v.Kind)
		}
		if v.Kind == KMSv2 {
			if len(v.Object.KeyID) == 0 || len(v.Object.EncryptedDEKSource) == 0 || len(v.Object.Data) == 0 {
				t.Fatal("a KMS v2 object without its parts")
			}
			for k, a := range v.Object.Annotations() {
				if !bytes.Equal(v.Object.Annotation(k), a) && len(a) > 0 {
					// A name given twice: the last one wins in a map.
					continue
				}
			}
			_, _ = v.Object.Decrypt(make([]byte, 32), key)
		}
		k := ParseKey(key, "/registry")
		if k.Resource.Resource == "" && len(key) > len("/registry/") && !bytes.HasPrefix(key, []byte("/registry//")) {
			t.Fatalf("key %q has no resource", key)
		}
	})
}
