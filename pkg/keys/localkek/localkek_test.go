package localkek_test

import (
	"bytes"
	"crypto/fips140"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/localkek"
)

// first is a suite that this process allows.
func first() localkek.Suite {
	if fips140.Enforced() {
		return localkek.AES
	}
	return localkek.XAES
}

// suites that this process allows.
func suites() map[localkek.Suite]int {
	if fips140.Enforced() {
		return map[localkek.Suite]int{localkek.AES: 16 + 12 + 32 + 16}
	}
	return map[localkek.Suite]int{localkek.XAES: 24 + 32 + 16, localkek.AES: 16 + 12 + 32 + 16}
}

func TestSealOpen(t *testing.T) {
	for suite, size := range suites() {
		k, secret, err := localkek.Generate(suite)
		if err != nil {
			t.Fatal(err)
		}
		seed, ad := bytes.Repeat([]byte{9}, 32), []byte("header digest")
		sealed, err := k.Seal(seed, ad)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(sealed); n != size {
			t.Errorf("suite %d: a sealed seed has %d bytes, want %d", suite, n, size)
		}
		if again, err := k.Seal(seed, ad); err != nil || bytes.Equal(again[:16], sealed[:16]) {
			t.Errorf("suite %d: two seals begin with the same bytes, %v", suite, err)
		}
		again, err := localkek.Open(secret, k.ID(), suite)
		if err != nil {
			t.Fatal(err)
		}
		got, err := again.Open(sealed, ad)
		if err != nil || !bytes.Equal(got, seed) {
			t.Fatalf("suite %d: Open(Seal(seed)) gave other bytes or %v", suite, err)
		}
		if _, err := again.Open(sealed, []byte("other header")); !errors.Is(err, localkek.ErrSeal) {
			t.Errorf("suite %d: Open with another ad = %v, want ErrSeal", suite, err)
		}
		for i := range sealed {
			c := bytes.Clone(sealed)
			c[i] ^= 1
			if _, err := again.Open(c, ad); !errors.Is(err, localkek.ErrSeal) {
				t.Fatalf("suite %d: Open with byte %d changed = %v, want ErrSeal", suite, i, err)
			}
			if _, err := again.Open(sealed[:i], ad); !errors.Is(err, localkek.ErrSeal) {
				t.Fatalf("suite %d: Open of %d bytes = %v, want ErrSeal", suite, i, err)
			}
		}
	}
}

// What one suite sealed never opens by the other: their keys are independent.
func TestSuitesAreApart(t *testing.T) {
	if fips140.Enforced() {
		t.Skip("there is one suite only")
	}
	x, secret, err := localkek.Generate(localkek.XAES)
	if err != nil {
		t.Fatal(err)
	}
	a, err := localkek.Open(secret, x.ID(), localkek.AES)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range [][2]*localkek.Key{{x, a}, {a, x}} {
		sealed, err := k[0].Seal(make([]byte, 32), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k[1].Open(sealed, nil); !errors.Is(err, localkek.ErrSeal) {
			t.Errorf("Open by another suite = %v, want ErrSeal", err)
		}
	}
}

// A suite that cannot be used here is refused, never a panic.
func TestSuiteIsRefused(t *testing.T) {
	for suite, want := range map[localkek.Suite]string{0: "suite 0 is not known", 3: "suite 3 is not known", localkek.XAES: "not approved by FIPS 140-3"} {
		if suite == localkek.XAES && !fips140.Enforced() {
			continue
		}
		if _, _, err := localkek.Generate(suite); !errors.Is(err, localkek.ErrSuite) || !strings.Contains(err.Error(), want) {
			t.Errorf("Generate(%d) = %v, want %q", suite, err, want)
		}
		if _, err := localkek.Open(make(keys.Secret, 32), [32]byte{}, suite); !errors.Is(err, localkek.ErrSuite) {
			t.Errorf("Open(%d) = %v, want ErrSuite", suite, err)
		}
	}
}

// XAES-256-GCM does not commit to its key: the id must.
func TestCommitment(t *testing.T) {
	a, secretA, err := localkek.Generate(first())
	if err != nil {
		t.Fatal(err)
	}
	b, secretB, err := localkek.Generate(first())
	if err != nil {
		t.Fatal(err)
	}
	if a.ID() == b.ID() {
		t.Fatal("two local KEKs have one id")
	}
	if _, err := localkek.Open(secretB, a.ID(), first()); !errors.Is(err, localkek.ErrCommitment) {
		t.Errorf("Open of another local KEK = %v, want ErrCommitment", err)
	}
	if _, err := localkek.Open(secretA[:31], a.ID(), first()); !errors.Is(err, localkek.ErrCommitment) {
		t.Errorf("Open of 31 bytes = %v, want ErrCommitment", err)
	}
}

// Data sealed by an earlier release opens for ever: these bytes never change.
func TestGoldenSeal(t *testing.T) {
	secret := keys.Secret(bytes.Repeat([]byte{0x42}, 32))
	const id = "a68b430ed314d9f1c9ee2f772111f6d87d3886bf961aae532bfe1050c981623d"
	sealed := map[localkek.Suite]string{
		localkek.XAES: "08f3943d45751586972c716fc6803b8e5899cbaab052a538109c2ba2fd56273af497b94949e1dabd14174216e089dbc81202f770223e130590d632a4dec0e5aa634befcfb7a8a821",
		localkek.AES:  "000102030405060708090a0b0c0d0e0f202122232425262728292a2b8088b9230e9ad07be7fdf17cb95f2751cc2b4269856719ba522bad380891c8dbffea185ec4e3354d342d06c2a81d46f5",
	}
	rawID, err := hex.DecodeString(id)
	if err != nil || len(rawID) != 32 {
		t.Fatalf("id vector: %v", err)
	}
	for suite := range suites() {
		k, err := localkek.Open(secret, [32]byte(rawID), suite)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := hex.DecodeString(sealed[suite])
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.Open(raw, []byte("golden"))
		if err != nil || string(got) != strings.Repeat("s", 32) {
			t.Fatalf("golden seal of suite %d does not open: %v", suite, err)
		}
	}
}

func TestKeyPrintsNothing(t *testing.T) {
	_, secret, err := localkek.Generate(first())
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%v %+v %#v %x %s %q", secret, secret, secret, secret, secret, secret)
	if strings.Contains(out, hex.EncodeToString(secret)) || strings.Contains(out, string(secret)) {
		t.Error("a Secret printed its bytes")
	}
}
