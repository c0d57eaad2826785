package daemon_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/test/fakekms"
)

// The audit record of a Decrypt after a restart names the call by which the KMS gave
// the local KEK, as the KMS' own log names it; and by the uid the API server's.
func TestAuditIsJoinedToTheTrail(t *testing.T) {
	i := newInstance(t)
	i.start()
	e := i.sealed()
	i.stop()
	// Nothing is known any more, so that Decrypt has the KMS unwrap.
	if err := os.Remove(i.dir + "/state.json"); err != nil {
		t.Fatal(err)
	}
	i.start()
	i.eventually("Decrypt", func() error { return i.decryptFor("cold", e) })
	if err := i.decryptFor("warm", e); err != nil {
		t.Fatal(err)
	}
	i.stop()
	record := i.recordOf("decrypt", "cold")
	if warm := i.recordOf("decrypt", "warm"); warm.Seq == 0 || warm.RequestID != "" {
		t.Errorf("the record of a Decrypt that called nobody is %+v", warm)
	}
	calls := i.cloud.Requests()
	at := slices.IndexFunc(calls, func(c fakekms.Request) bool { return c.RequestID == record.RequestID })
	if at < 0 || record.RequestID == "" {
		t.Fatalf("the record names request %q, which the KMS does not know", record.RequestID)
	}
	if c := calls[at]; c.Op != "Decrypt" || c.Error != "" || c.KeyID != i.arn || c.Context["kms-plugin-type"] != "local-kek" {
		t.Errorf("the record names the call %+v, want the unwrap of a local KEK", c)
	}
	if trail := string(i.cloud.Trail()); !strings.Contains(trail, `"requestID":"`+record.RequestID+`"`) {
		t.Error("the trail does not hold it")
	}
}

// recordOf is the last of the audit log's for a call that went well.
func (i *instance) recordOf(op, uid string) (last audit.Record) {
	i.t.Helper()
	data, err := os.ReadFile(i.dir + "/audit.log")
	if err != nil {
		i.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var r audit.Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			i.t.Fatal(err)
		}
		if r.Op == op && r.UID == uid && r.Outcome == "ok" {
			last = r
		}
	}
	return last
}
