package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kms-plugin.io/internal/preflight"
)

func TestConfinement(t *testing.T) {
	const (
		none   = "Name:\tkms-plugin\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n"
		caps   = "CapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t0\n"
		privs  = "CapEff:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t0\n"
		header = "Limit                     Soft Limit           Hard Limit           Units     \n"
		noCore = header + "Max core file size        0                    0                    bytes     \n"
		cores  = header + "Max core file size        unlimited            unlimited            bytes     \n"
	)
	for name, tc := range map[string]struct {
		status, limits string
		dumpable       bool
		level          preflight.Level
		text, remedy   string
	}{
		"all of it":       {none, noCore, false, preflight.OK, "no_new_privs on, seccomp on, capabilities 0000000000000000; no core files", ""},
		"core files":      {none, cores, false, preflight.Problem, "may leave a core file", "kms-plugin serve"},
		"no limits":       {none, header, false, preflight.Problem, "may leave a core file", "kms-plugin serve"},
		"memory readable": {none, noCore, true, preflight.Problem, "read its memory", "kms-plugin serve"},
		"privileges":      {privs, noCore, false, preflight.Warning, "no_new_privs off", "NoNewPrivileges=yes"},
		"capabilities":    {caps, noCore, false, preflight.Warning, "00000000a80425fb", "CapabilityBoundingSet="},
		"memory locked":   {strings.Replace(none, "CapEff:\t0000000000000000", "CapEff:\t0000000000004000", 1), noCore, false, preflight.OK, "capabilities 0000000000004000", ""},
		"one more":        {strings.Replace(none, "CapEff:\t0000000000000000", "CapEff:\t0000000000004001", 1), noCore, false, preflight.Warning, "0000000000004001", "CapabilityBoundingSet="},
		"nothing known":   {"", noCore, false, preflight.Warning, "no_new_privs off", "NoNewPrivileges=yes"},
	} {
		r := confinement(7, 1000, tc.status, tc.limits, tc.dumpable)
		if r.Level != tc.level || !strings.Contains(r.Message, tc.text) || !strings.Contains(r.Remedy, tc.remedy) {
			t.Errorf("%s: %+v, want %s, %q, %q", name, r, tc.level, tc.text, tc.remedy)
		}
	}
}

func TestSwap(t *testing.T) {
	const header = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for name, tc := range map[string]struct {
		data  string
		level preflight.Level
		text  string
	}{
		"off": {header, preflight.OK, "swap is off"},
		"on":  {header + "/dev/sda2                               partition\t1000\t0\t-2\n", preflight.Warning, "swap is on (/dev/sda2)"},
	} {
		file := filepath.Join(t.TempDir(), "swaps")
		if err := os.WriteFile(file, []byte(tc.data), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := swap(file); r.Level != tc.level || !strings.Contains(r.Message, tc.text) {
			t.Errorf("%s: %+v, want %s, %q", name, r, tc.level, tc.text)
		}
	}
	if r := swap("/nonexistent"); r.Level != preflight.Skipped {
		t.Errorf("without the file: %+v", r)
	}
}
