package custody_test

import (
	"bytes"
	"crypto/fips140"
	"testing"
	"testing/synctest"
	"time"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys/localkek"
	"kms-plugin.io/pkg/plugin"
)

// testSuite is what this process allows: these tests also run where nothing but
// FIPS 140-3 is.
func testSuite() localkek.Suite {
	if fips140.Enforced() {
		return localkek.AES
	}
	return localkek.XAES
}

func suiteOf(t *testing.T, s plugin.Sealed) envelope.Suite {
	t.Helper()
	h, err := envelope.Parse(s.Annotations[envelope.AnnotationKey])
	if err != nil {
		t.Fatal(err)
	}
	return h.Suite
}

// The suite is switched by a reload, there and back: key_id stays, what either
// sealed opens, on another instance too.
func TestSuiteIsSwitched(t *testing.T) {
	if fips140.Enforced() {
		t.Skip("there is one suite only")
	}
	synctest.Test(t, func(t *testing.T) {
		c, dir := newCloud("a"), t.TempDir()
		r := ring(t, write("a", c))
		i, other := start(t, r, dir), start(t, ring(t, write("a", c)), "")
		id := mustKeyID(t, i)
		var all []plugin.Sealed
		for _, suite := range []localkek.Suite{localkek.XAES, localkek.AES, localkek.XAES} {
			next := tuning
			next.Suite = suite
			if err := i.Replace(r, next); err != nil {
				t.Fatal(err)
			}
			sleep(5 * time.Minute)
			s := mustSeal(t, i)
			if got := suiteOf(t, s); got != envelope.Suite(suite) {
				t.Errorf("sealed by suite %d, want %d", got, suite)
			}
			if got := mustKeyID(t, i); got != id || s.KeyID != id {
				t.Errorf("key_id = %q, sealed under %q, was %q", got, s.KeyID, id)
			}
			all = append(all, s)
		}
		for _, s := range all {
			mustOpen(t, i, s)
			mustOpen(t, other, s)
		}
		i.stop()
		again := start(t, r, dir)
		last := all[len(all)-1].Annotations[envelope.AnnotationKey]
		if got := mustSeal(t, again).Annotations[envelope.AnnotationKey]; !bytes.Equal(got, last) {
			t.Error("a restart made another local KEK, though the state file was there")
		}
	})
}

// New material behind the key, seen while the suite is to change too, is adopted all the
// same, and the suite with it.
func TestSuiteAndMaterialAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, dir := newCloud("a"), t.TempDir()
		r := ring(t, write("a", c))
		i := start(t, r, dir)
		id := mustKeyID(t, i)
		c.rotate("m2")
		next := tuning
		next.Suite = localkek.AES
		if err := i.Replace(r, next); err != nil {
			t.Fatal(err)
		}
		sleep(time.Hour)
		if mustKeyID(t, i) == id {
			t.Error("an hour after the rotation the old key_id is reported")
		}
		if got := suiteOf(t, mustSeal(t, i)); got != envelope.SuiteAES {
			t.Errorf("sealed by suite %d, want %d", got, envelope.SuiteAES)
		}
	})
}
