package status_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/internal/status"
)

func TestPrint(t *testing.T) {
	full := status.Report{Socket: "/run/k", Healthy: true, Version: "v2", Healthz: "ok", KeyID: "prod:00", KeyIDHash: "sha256:11", LatencyMS: 0.26,
		Plugin: &status.Plugin{Ready: true, LocalKEKs: 2, Version: "v1", DiskDiffers: true, Keys: []status.Key{{Name: "lab", Wrap: "unknown", Unwrap: "closed"}, {Name: "prod", Wrap: "ok", Unwrap: "ok", LastGood: &good}}}}
	for _, c := range []struct {
		name   string
		report status.Report
		want   string
	}{
		{"full", full, `SOCKET       /run/k (answered in 0.3 ms)
STATUS       version v2, healthz ok
KEY_ID       prod:00
KEY_ID HASH  sha256:11
PLUGIN       v1, ready true, 2 local KEKs in memory
CONFIG       the file on disk is NOT in force; see the log
KEY lab      wrap unknown, unwrap closed, last good probe never
KEY prod     wrap ok, unwrap ok, last good probe AGE ago
`},
		{"error", status.Report{Socket: "/run/k", LatencyMS: 12.34, Error: "Unavailable: x"}, `SOCKET  /run/k (answered in 12.3 ms)
STATUS  ERROR Unavailable: x
`},
	} {
		var out bytes.Buffer
		if err := c.report.Print(&out); err != nil {
			t.Fatal(err)
		}
		got := regexp.MustCompile(`probe -?[0-9hms]+ ago`).ReplaceAllString(out.String(), "probe AGE ago")
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
	broken := errors.New("broken pipe")
	if err := full.Print(failing{broken}); !errors.Is(err, broken) {
		t.Errorf("Print to a broken pipe = %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// Scripts depend on these names.
func TestJSON(t *testing.T) {
	b, err := json.Marshal([]status.Report{
		{Socket: "s", Healthy: true, Version: "v2", Healthz: "ok", KeyID: "k", KeyIDHash: "h", LatencyMS: 1.5,
			Plugin: &status.Plugin{Ready: true, LocalKEKs: 2, Version: "v1", Keys: []status.Key{{Name: "k", Wrap: "ok", Unwrap: "closed", LastGood: &good}, {Name: "l"}}}},
		{Socket: "s", Error: "e"},
	})
	want := `[{"socket":"s","healthy":true,"version":"v2","healthz":"ok","keyID":"k","keyIDHash":"h","latencyMS":1.5,` +
		`"plugin":{"ready":true,"configDiskDiffers":false,"localKEKs":2,"keys":[{"name":"k","wrap":"ok","unwrap":"closed","lastGoodProbe":"2026-11-30T12:00:00.123Z"},{"name":"l","wrap":"","unwrap":""}],"version":"v1"}},` +
		`{"socket":"s","healthy":false,"latencyMS":0,"error":"e"}]`
	if d := cmp.Diff(want, string(b)); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

// Regions, co-recipients and what closed a key, for people and for programs.
func TestRegionsAndRecipients(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := metrics.New(reg, "v1")
	m.SetReady(true)
	m.SetBound("key-state", 90*time.Second)
	m.SetKeys([]metrics.Key{{Name: "prod", Role: "write", Active: true, Wrap: "closed", Unwrap: "closed", LastOpened: good,
		Regions:    []metrics.Region{{Name: "eu-west-1", Wrap: "outage", Unwrap: "key-state"}, {Name: "us-east-1", InUse: true, Wrap: "ok", Unwrap: "ok"}},
		Recipients: []string{"spare", "aux"}, Closed: metrics.Closed{Class: "key-state", Since: good}}})
	r, err := status.Ask(t.Context(), serve(t, healthy()), page(t, promhttp.HandlerFor(reg, promhttp.HandlerOpts{})))
	if err != nil {
		t.Fatal(err)
	}
	want := status.Key{Name: "prod", Role: "write", Active: true, Wrap: "closed", Unwrap: "closed", LastOpened: &good,
		Regions:    []status.Region{{Name: "us-east-1", InUse: true, Wrap: "ok", Unwrap: "ok"}, {Name: "eu-west-1", Wrap: "outage", Unwrap: "key-state"}},
		Recipients: []string{"spare", "aux"}, Closed: &status.Closed{Class: "key-state", Since: good}}
	if d := cmp.Diff(want, r.Plugin.Keys[0]); d != "" {
		t.Errorf("key (-want +got):\n%s", d)
	}
	if r.Plugin.Bounds["key-state"] != 90 {
		t.Errorf("bounds %v", r.Plugin.Bounds)
	}
	var b bytes.Buffer
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"region us-east-1: wrap ok, unwrap ok, calls go there first\n", "region eu-west-1: wrap outage, unwrap key-state\n",
		"co-recipients: spare, aux\n", "OPENS NOTHING since 2026-11-30T12:00:00Z (key-state)\n"} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("no %q in\n%s", line, &b)
		}
	}
}
