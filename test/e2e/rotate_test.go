//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/test/controlplane"
)

// A rotation behind the same ARN under load: one plugin lags, the run is killed
// and started again, and ends with a proof.
func TestRotateRun(t *testing.T) {
	x := newTrio(t)
	x.fill(10_000)
	old := x.keyID(x.p[0])
	b := x.watch()
	x.cloud.SetConsistency(func(caller string, _ int, history []string) int {
		if caller == "p3" {
			return 0
		}
		return len(history) - 1
	})
	x.cloud.Rotate(x.arn)
	x.within(20*time.Second, "two plugins turn", func(context.Context) error {
		if x.keyID(x.p[0]) == old || x.keyID(x.p[1]) == old {
			return errors.New("still the old key_id")
		}
		return nil
	})
	next := x.keyID(x.p[0])
	_, stderr := x.kmsctl(1, x.rotateArgs("--wait", "40s", "--to", next)...)
	if !strings.Contains(stderr, strings.TrimPrefix(x.a[2].URL, "https://")+" writes under key_id") || !strings.Contains(stderr, "nothing was changed") {
		t.Errorf("the laggard is not named: %s", stderr)
	}
	x.cloud.SetConsistency(nil)

	// Killed in the middle of its writes, twice, and an API server starts anew between:
	// what it has in memory is gone, and its plugin is really asked.
	x.killedWriting(next, "--to", next, "--qps", "400")
	x.bounce(0)
	x.killedWriting(next, "--to", next, "--qps", "400")
	left := x.onKey(old)
	if left == 0 {
		t.Fatal("nothing is left to do for the third run")
	}
	// However late the kills came, it takes twenty seconds, and says meanwhile how far it is.
	out, log := x.kmsctl(0, x.rotateArgs("--to", next, "--qps", fmt.Sprint(max(left/20, 1)))...)
	if !strings.Contains(string(out), "everything is under key_id "+next) || !strings.Contains(log, "all 3 API servers write under key_id "+next) {
		t.Errorf("%s%s", out, log)
	}
	if !strings.Contains(log, "re-encrypting: ") || !strings.Contains(log, " objects written again, ") || strings.ContainsAny(log, "\x1b\r") {
		t.Errorf("of %d objects it does not say how far it is, or not in plain lines: %q", left, log)
	}
	if n := x.onKey(old); n != 0 {
		t.Errorf("%d objects are still under the old key_id", n)
	}
	b.check(t)
	next = x.toNewKEK()
	// The canaries are gone, and what is there opens on API servers that start anew.
	for i := range x.a {
		x.restart(x.a[i])
	}
	x.read2(x.a[0], "fill-00000")
	x.read2(x.a[2], "fill-09999")
	out, _ = x.kmsctl(0, x.rotateArgs()...) // again: there is nothing to do
	if !strings.Contains(string(out), next) {
		t.Errorf("%s", out)
	}
}

func (x *trio) read2(a *controlplane.APIServer, name string) {
	x.t.Helper()
	if s, err := a.GetSecret(x.t.Context(), name); err != nil || string(s.Data["v"]) != "value of fill" {
		x.t.Errorf("%s: %v", name, err)
	}
}

// onKey counts in etcd, in another way than the product.
func (x *trio) onKey(id string) (n int) {
	x.t.Helper()
	for _, prefix := range []string{"/registry/secrets/default/fill-", "/registry/example.com/widgets/default/fill-"} {
		kvs, err := x.etcd.List(x.t.Context(), prefix)
		if err != nil {
			x.t.Fatal(err)
		}
		for _, kv := range kvs {
			if bytes.Contains(kv.Value, []byte(id)) {
				n++
			}
		}
	}
	return n
}
