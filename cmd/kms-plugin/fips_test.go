package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/test/fakekms"
)

// A daemon that allows nothing but FIPS 140-3 serves with the suite made for it;
// what the other suite sealed it refuses with the reason, and another daemon
// opens both. key_id is the same for all of them.
func TestServeFIPSOnly(t *testing.T) {
	cloud, err := fakekms.Start(fakekms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	s := newAWS(t, cloud, cloud.CreateKey("eu-west-1", fakekms.KeyOptions{}), "")
	seal := func() *kmsapi.DecryptRequest {
		t.Helper()
		r, err := s.kms().Encrypt(t.Context(), &kmsapi.EncryptRequest{Uid: "f", Plaintext: []byte(strings.Repeat("s", 32))})
		if err != nil {
			t.Fatal(err)
		}
		return &kmsapi.DecryptRequest{Uid: "f", KeyId: r.KeyId, Ciphertext: r.Ciphertext, Annotations: r.Annotations}
	}
	open := func(r *kmsapi.DecryptRequest) error {
		a, err := s.kms().Decrypt(context.WithoutCancel(t.Context()), r)
		if err == nil && string(a.Plaintext) != strings.Repeat("s", 32) {
			return fmt.Errorf("opened to other bytes")
		}
		return err
	}
	xaes := seal()

	only := append([]string{"GODEBUG=fips140=only"}, s.environment...)
	plain := s.environment
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s.environment = only
	s.run() // the suite of the configuration is not to be had
	s.until("is not approved by FIPS 140-3, and this process allows nothing else")
	s.until("write suite: aes-256-gcm")
	_ = s.cmd.Wait()
	s.cmd = nil

	s.write("probe: {interval: 200ms}\nsuite: aes-256-gcm\n")
	s.log.reset()
	s.run()
	s.until(`"msg":"key_id activated"`)
	aes := seal()
	if err := open(aes); err != nil {
		t.Errorf("open what was sealed under fips140=only: %v", err)
	}
	if err := open(xaes); err == nil || !strings.Contains(err.Error(), "not approved by FIPS 140-3") {
		t.Errorf("open what XAES sealed, under fips140=only: %v, want the reason", err)
	}
	if aes.KeyId != xaes.KeyId {
		t.Errorf("key_id is %q, with the other suite %q", aes.KeyId, xaes.KeyId)
	}

	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s.environment = plain
	s.restartAs("")
	for name, r := range map[string]*kmsapi.DecryptRequest{"aes": aes, "xaes": xaes} {
		if err := open(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// restartAs starts a stopped daemon with more configuration.
func (s *served) restartAs(more string) {
	s.t.Helper()
	s.write("probe: {interval: 200ms}\n" + more)
	s.log.reset()
	s.run()
	s.until(`"msg":"serving"`)
	s.until("local KEK")
}
