package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/etcdstore"
	"kms-plugin.io/internal/rotation"
	"kms-plugin.io/pkg/keys"
)

var (
	digest = strings.Repeat("0", 32)
	// rotatedRing has the key that everything is under, its co-recipient, and others.
	rotatedRing = &config.Config{Keys: []config.Key{{Name: "next", Role: keys.RoleWrite, AlsoWrapWith: []string{"also"}}, {Name: "also", Role: keys.RoleRead},
		{Name: "prod", Role: keys.RoleWrite}, {Name: "older", Role: keys.RoleRetired}, {Name: "used", Role: keys.RoleRead}}}
)

func proof(at time.Time) *rotation.Result {
	return &rotation.Result{KeyID: "next:" + digest, Report: &coverage.Report{ReadAt: at, Keys: []coverage.Key{
		{ID: "n", KeyID: "next:" + digest, Current: true, Objects: 9}, {ID: "u", KeyID: "used:" + digest, Objects: 2}}}}
}

func ending(t *testing.T, r rotated, want ...string) string {
	t.Helper()
	var b strings.Builder
	if err := r.print(&b); err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		if !strings.Contains(b.String(), w) {
			t.Errorf("no %q in\n%s", w, b.String())
		}
	}
	return b.String()
}

// A run ends with what may become of each other key.
func TestPrintRotated(t *testing.T) {
	text := ending(t, newRotated(proof(time.Time{}), rotatedRing, nil), `key "prod": no object is under it; it may be retired`, "kmsctl retire older --snapshots DIR",
		`key "used": 2 objects are under it; it stays`)
	if strings.Contains(text, `key "also"`) || strings.Contains(text, `key "next"`) {
		t.Errorf("what stays is listed:\n%s", text)
	}
}

// With the backups: until when. The latest of several key_ids of a name counts; the
// newest snapshot may have had a successor while the run went on.
func TestRotatedWithBackups(t *testing.T) {
	day := time.Date(2026, 11, 10, 15, 0, 0, 0, time.UTC)
	of := func(id, keyID, file string, at time.Time, newest bool) coverage.Needed {
		return coverage.Needed{Key: coverage.Key{ID: id, KeyID: keyID}, LastFile: file, LastTime: at, Newest: newest}
	}
	inv := &coverage.Inventory{Keep: "720h0m0s", Snapshots: slices.Repeat([]coverage.Snapshot{{Source: etcdstore.Info{File: "b.db", Verified: true}}}, 3), Keys: []coverage.Needed{
		of("p1", "prod:"+digest, "a.db", day.AddDate(0, 0, -9), false), of("p2", "prod:1"+digest[1:], "b.db", day, true),
		of("u", "used:"+digest, "b.db", day, true), of("g", "gone:"+digest, "a.db", day.AddDate(0, 0, -9), false), of("n", "next:"+digest, "b.db", day, true)}}
	r := newRotated(proof(day.Add(10*time.Hour)), rotatedRing, inv)
	text := ending(t, r, `key "prod": no object is under it; last needed by b.db of 2026-11-10, so it may go on 2026-12-12 if no snapshot from after this run needs it; it may be retired`,
		`key "older": no object is under it, and none of 3 snapshots needs it; it is retired`,
		`key "key_id gone:`+digest+`": no object is under it; last needed by a.db of 2026-11-01, so it may go on 2026-12-02 if no snapshot from after this run needs it; the configuration does not have it`)
	if strings.Contains(text, `key "key_id next`) {
		t.Errorf("the current key may go:\n%s", text)
	}

	// Where the times contradict the revisions no day is told, and why not is.
	inv.Warnings = []string{"file times were lost"}
	if text := ending(t, newRotated(proof(day), rotatedRing, inv), "warning: file times were lost", "last needed by b.db"); strings.Contains(text, "may go on") {
		t.Errorf("a day is told:\n%s", text)
	}
	inv.Warnings, inv.Snapshots[1].Source.Verified = nil, false
	if text := ending(t, newRotated(proof(day), rotatedRing, inv), "warning: b.db has no hash to verify"); strings.Contains(text, "may go on") {
		t.Errorf("a day is told:\n%s", text)
	}
}

func TestRotateRunNeedsToKnowWhichKeys(t *testing.T) {
	enc := filepath.Join(t.TempDir(), "enc.yaml")
	if err := os.WriteFile(enc, []byte(inForce), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{{[]string{"--snapshots", "/x"}, "--snapshots needs --plugin-config"}, {[]string{"--keep", "30d"}, "--keep 30d needs --snapshots"}, {[]string{"--keep", "x"}, "--keep"}} {
		if _, stderr, code := command(append([]string{"rotate", "run", "--encryption-config", enc}, tt.args...)...); code != cli.ExitUsage || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v: exit %d: %s", tt.args, code, stderr)
		}
	}
}
