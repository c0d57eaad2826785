package daemon_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/audit"
	"kms-plugin.io/internal/audit/evidence"
	"kms-plugin.io/test/fakekms"
)

// docs/revocation.md has the bounds that a default configuration really exports.
func TestDocumentedBounds(t *testing.T) {
	i := newInstance(t)
	i.put(strings.Replace(i.base(), "probe: {interval: 100ms}\n", "", 1))
	i.start()
	doc, err := os.ReadFile("../../docs/revocation.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| .* \\| ([0-9.]+) s \\|$").FindAllStringSubmatch(string(doc), -1)
	if len(rows) != 4 {
		t.Fatalf("%d classes are documented", len(rows))
	}
	for _, r := range rows {
		i.metric(fmt.Sprintf(`kms_plugin_revocation_bound_seconds{class="%s"} %s`, r[1], r[2]))
	}
}

// A retired key that is disabled closes for itself alone, is never asked to wrap, and
// opens again when it is enabled.
func TestRetiredKeyDisabled(t *testing.T) {
	i := newInstance(t)
	i.configure(short)
	i.start()
	old, oldARN := i.sealed(), i.arn
	i.stop()
	i.arn = i.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{})
	i.put(strings.Replace(i.base(), "name: prod", "name: next", 1) + fmt.Sprintf("- {name: prod, role: retired, awskms: {keyARN: \"%s\", endpoint: \"%s\"}}\n", oldARN, i.cloud.URL()) +
		short + "rotation: {readableFor: 0s}\n")
	i.put(strings.Replace(i.read(), "rotation: {observations: 2, settleTime: 0s, readableFor: 1h}\n", "", 1))
	i.start()
	i.eventually("the next key writes, the old one opens", func() error {
		e, err := i.encrypt()
		if err == nil && !strings.HasPrefix(e.KeyId, "next:") {
			err = errors.New(e.KeyId)
		}
		return errors.Join(err, i.decrypt(old))
	})
	hot := i.sealed()
	i.cloud.ResetCounts()
	i.cloud.SetState(oldARN, "Disabled")
	i.eventually("the old key is closed", func() error {
		e, err := i.encrypt()
		if err != nil || e.KeyId != hot.KeyId || i.decrypt(hot) != nil {
			t.Fatalf("the write key is harmed: %v", err)
		}
		if err := i.decrypt(old); err == nil || !strings.Contains(err.Error(), "is closed (key-state)") {
			return fmt.Errorf("Decrypt under it = %v", err)
		}
		return nil
	})
	i.shows(`kms_plugin_key_closed_timestamp_seconds{class="key-state",key="prod"}`)
	i.goesOn(hot)
	for _, r := range i.cloud.Requests() {
		if r.KeyID == oldARN && r.Op == "Encrypt" {
			t.Fatal("a retired key was asked to wrap")
		}
	}
	i.cloud.SetState(oldARN, "Enabled")
	i.eventually("the old key opens again", func() error { return i.decrypt(old) })
}

// When the memory of a key that was taken away is wiped, the audit log says so: after
// its closing, once, with the cause, in the chain and before the key serves again.
func TestWipeIsRecorded(t *testing.T) {
	i := newInstance(t)
	i.configure(short)
	i.start()
	hot := i.sealed()
	i.cloud.SetState(i.arn, "Disabled")
	i.closes(cell{class: "key-state"}, hot, hot)
	i.cloud.ResetCounts()
	i.eventually("it is probed on", func() error {
		if n := len(i.cloud.Requests()); n < 4 {
			return fmt.Errorf("%d calls", n)
		}
		return nil
	})
	i.cloud.SetState(i.arn, "Enabled")
	i.eventually("the key opens again", func() error { return i.decrypt(hot) })
	i.stop()
	var ops []string
	for _, r := range i.recorded() {
		if r.Op == "wipe" || (r.Op == "ok" || r.Op == "closed") && (len(ops) == 0 || ops[len(ops)-1] != r.Op) { // of wrap and unwrap, one
			ops = append(ops, r.Op)
		}
		if r.Op == "wipe" && (r.KEK != "prod" || r.Outcome != "key-state" || !strings.Contains(r.Error, "DisabledException")) {
			t.Errorf("the wipe is recorded as %+v", r)
		}
	}
	if got := strings.Join(ops, " "); got != "ok closed wipe ok" {
		t.Errorf("the audit log tells of %q, want ok closed wipe ok", got)
	}
}

// recorded is the audit log, in which nothing is to be found.
func (i *instance) recorded() (all []audit.Record) {
	i.t.Helper()
	file := i.dir + "/audit.log"
	if r, err := evidence.Verify([]string{file}, nil, false); err != nil || !r.Holds {
		i.t.Fatalf("audit log: %+v, %v", r, err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		i.t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		r, err := audit.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if err != nil {
			i.t.Fatalf("%s: %v", line, err)
		}
		all = append(all, *r)
	}
	return all
}

func (i *instance) read() string {
	i.t.Helper()
	data, err := os.ReadFile(i.file)
	if err != nil {
		i.t.Fatal(err)
	}
	return string(data)
}

// A role is withdrawn: its sessions end and no new ones are handed out. That bites
// after health.credential, and ends by itself.
func TestRoleWithdrawn(t *testing.T) {
	i := newInstance(t)
	i.configure(short)
	i.start()
	hot := i.sealed()
	i.cloud.SetCredentials("default", time.Hour, true)
	i.cloud.ExpireCredentials("default")
	i.closes(cell{class: "credential"}, hot, hot)
	i.cloud.SetCredentials("default", time.Hour, false)
	i.eventually("served again", func() error {
		_, err := i.encrypt()
		return errors.Join(err, i.decrypt(hot))
	})
}

// A mis-click in IAM, undone before its timer ends, loses nothing, also the third time.
func TestShortMisclick(t *testing.T) {
	i := newInstance(t)
	i.configure("health: {authorization: 30s}\n")
	i.start()
	hot := i.sealed()
	for range 3 {
		i.cloud.SetPolicy(i.arn, []fakekms.Statement{{Deny: true}})
		i.shows(`kms_plugin_key_state{key="prod",op="unwrap",state="degraded"} 1`, `kms_plugin_key_state{key="prod",op="wrap",state="degraded"} 1`)
		i.goesOn(hot)
		i.cloud.SetPolicy(i.arn, nil)
		i.shows(`kms_plugin_key_state{key="prod",op="unwrap",state="ok"} 1`)
	}
	if !strings.Contains(i.log.String(), "key is denied by its KMS, still served until its limit") {
		t.Error("the log does not tell of it")
	}
}

// Somebody blocks the egress so that no denial arrives: sealing ends with maxOutage,
// opening with maxOutageDecrypt, within the bound that is exported.
func TestEgressBlocked(t *testing.T) {
	i := newInstance(t)
	i.configure(short)
	i.start()
	hot := i.sealed()
	i.cloud.SetState(i.arn, "Disabled")
	i.cloud.Blackhole()
	begun, last, sealedOnly := time.Now(), time.Time{}, false
	i.eventually("nothing opens", func() error {
		_, err := i.kms.Status(t.Context(), &kmsapi.StatusRequest{})
		if i.decrypt(hot) == nil {
			last, sealedOnly = time.Now(), sealedOnly || err != nil
			return errors.New("it does")
		}
		return nil
	})
	if took := last.Sub(begun); took < 2*time.Second || took > 20*time.Second || !sealedOnly {
		t.Errorf("the last seed was opened after %s; opened while sealing was closed: %t", took, sealedOnly)
	}
	if err := i.decrypt(hot); err == nil || !strings.Contains(err.Error(), "is closed (outage)") {
		t.Errorf("Decrypt = %v", err)
	}
}
