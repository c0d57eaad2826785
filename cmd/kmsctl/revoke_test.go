package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/internal/revocation"
)

// pluginPage serves the metrics of a plugin whose key is closed, or is not.
func pluginPage(t *testing.T, closed bool) string {
	t.Helper()
	reg := prometheus.NewRegistry()
	m := metrics.New(reg, "v1")
	k := metrics.Key{Name: "prod", Role: "write", Wrap: "ok", Unwrap: "ok"}
	if closed {
		k.Unwrap, k.Closed = "closed", metrics.Closed{Class: "authorization", Since: time.Now()}
	}
	m.SetKeys([]metrics.Key{k})
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestRevokeCheck(t *testing.T) {
	shut, open := pluginPage(t, true), pluginPage(t, false)
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"closed":         {[]string{"prod", "--plugins", shut, "--no-api-servers"}, cli.ExitOK, "opens nothing since"},
		"one still open": {[]string{"prod", "--plugins", shut + "," + open, "--no-api-servers"}, cli.ExitFound, "NOT PROVEN: 1 of 2 checks"},
		"one silent":     {[]string{"prod", "--plugins", "127.0.0.1:1", "--no-api-servers"}, cli.ExitFound, "cannot be asked"},
		"socket serves":  {[]string{"prod", "--plugins", shut, "--no-api-servers", "--socket", serve(t, plugin{})}, cli.ExitFound, "Status is ok"},
		"no key":         {[]string{"--plugins", shut}, cli.ExitUsage, "requires at least 1 arg"},
		"no plugins":     {[]string{"prod"}, cli.ExitUsage, `required flag(s) "plugins"`},
		"no time":        {[]string{"prod", "--plugins", shut, "--since", "today"}, cli.ExitUsage, "date -u"},
		"no cluster":     {[]string{"prod", "--plugins", shut, "--kubeconfig", "/nowhere"}, cli.ExitFailed, "--no-api-servers"},
	} {
		stdout, stderr, code := command(append([]string{"revoke-check"}, tc.args...)...)
		if code != tc.code || !strings.Contains(stdout+stderr, tc.want) {
			t.Errorf("%s: exit code %d, want %d with %q:\n%s%s", name, code, tc.code, tc.want, stdout, stderr)
		}
	}
	stdout, _, code := command("revoke-check", "prod", "--plugins", shut, "--no-api-servers", "-o", "json")
	var r revocation.Report
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || code != cli.ExitOK || !r.Proven || r.APIVersion != revocation.APIVersion || r.Checks[0].Closed.Class != "authorization" {
		t.Errorf("exit code %d, %v:\n%s", code, err, stdout)
	}
	if stdout, _, _ := command("__complete", "revoke-check", "prod", "--output", ""); !strings.Contains(stdout, "json") {
		t.Errorf("completion: %s", stdout)
	}
}
