package localkek_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/localkek"
)

func TestSealOpen(t *testing.T) {
	k, secret, err := localkek.Generate()
	if err != nil {
		t.Fatal(err)
	}
	seed, ad := bytes.Repeat([]byte{9}, 32), []byte("header digest")
	sealed, err := k.Seal(seed, ad)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(sealed); n != 24+32+16 {
		t.Errorf("a sealed seed has %d bytes, want 72", n)
	}
	again, err := localkek.Open(secret, k.ID())
	if err != nil {
		t.Fatal(err)
	}
	got, err := again.Open(sealed, ad)
	if err != nil || !bytes.Equal(got, seed) {
		t.Fatalf("Open(Seal(seed)) gave other bytes or %v", err)
	}
	if _, err := again.Open(sealed, []byte("other header")); !errors.Is(err, localkek.ErrSeal) {
		t.Errorf("Open with another ad = %v, want ErrSeal", err)
	}
	for i := range sealed {
		c := bytes.Clone(sealed)
		c[i] ^= 1
		if _, err := again.Open(c, ad); !errors.Is(err, localkek.ErrSeal) {
			t.Fatalf("Open with byte %d changed = %v, want ErrSeal", i, err)
		}
	}
}

// XAES-256-GCM does not commit to its key: the id must.
func TestCommitment(t *testing.T) {
	a, secretA, err := localkek.Generate()
	if err != nil {
		t.Fatal(err)
	}
	b, secretB, err := localkek.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if a.ID() == b.ID() {
		t.Fatal("two local KEKs have one id")
	}
	if _, err := localkek.Open(secretB, a.ID()); !errors.Is(err, localkek.ErrCommitment) {
		t.Errorf("Open of another local KEK = %v, want ErrCommitment", err)
	}
	if _, err := localkek.Open(secretA[:31], a.ID()); !errors.Is(err, localkek.ErrCommitment) {
		t.Errorf("Open of 31 bytes = %v, want ErrCommitment", err)
	}
}

// Data sealed by an earlier release opens for ever: these bytes never change.
func TestGoldenSeal(t *testing.T) {
	secret := keys.Secret(bytes.Repeat([]byte{0x42}, 32))
	const id = "a68b430ed314d9f1c9ee2f772111f6d87d3886bf961aae532bfe1050c981623d"
	const sealed = "08f3943d45751586972c716fc6803b8e5899cbaab052a538109c2ba2fd56273af497b94949e1dabd14174216e089dbc81202f770223e130590d632a4dec0e5aa634befcfb7a8a821"
	rawID, err := hex.DecodeString(id)
	if err != nil || len(rawID) != 32 {
		t.Fatalf("id vector: %v", err)
	}
	k, err := localkek.Open(secret, [32]byte(rawID))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := hex.DecodeString(sealed)
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.Open(raw, []byte("golden"))
	if err != nil || string(got) != strings.Repeat("s", 32) {
		t.Fatalf("golden seal does not open: %v", err)
	}
}

func TestKeyPrintsNothing(t *testing.T) {
	_, secret, err := localkek.Generate()
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%v %+v %#v %x %s %q", secret, secret, secret, secret, secret, secret)
	if strings.Contains(out, hex.EncodeToString(secret)) || strings.Contains(out, string(secret)) {
		t.Error("a Secret printed its bytes")
	}
}
