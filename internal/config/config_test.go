package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kms-plugin.io/internal/config"
)

const arn = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

const good = `apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: prod-eu-1
socket: {path: /run/kms-plugin/kms.sock}
stateDir: /var/lib/kms-plugin
keys:
- name: prod-2026
  role: write
  awskms:
    keyARN: ` + arn + `
- name: lab
  role: read
  generation: 4
  localfile: {path: /etc/kms-plugin/lab.keyset}
`

func TestParseGood(t *testing.T) {
	c, problems := config.Parse([]byte(good))
	if problems != nil {
		t.Fatal(problems)
	}
	if c.Keys[0].Generation != 1 || c.Keys[1].Generation != 4 || c.Probe.Interval != time.Minute || c.ListenAddress != "127.0.0.1:8082" {
		t.Errorf("defaults are not filled in: %+v", c)
	}
	for path, want := range map[string]int{"clusterID": 3, "keys[0]": 7, "keys[0].role": 8, "keys[0].awskms.keyARN": 10, "keys[1].generation": 13, "keys[1].nothing": 11, "audit.path": 1} {
		if got := c.Line(path); got != want {
			t.Errorf("Line(%s) = %d, want %d", path, got, want)
		}
	}
}

// Each fault is named with its line; the hint says what to do.
func TestParseRefuses(t *testing.T) {
	replace := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("test is broken: no %q", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, tc := range map[string]struct {
		in   string
		line int
		want string
		hint string
	}{
		"empty":                {"", 0, "empty", "apiVersion"},
		"list":                 {"- a\n", 1, "not a mapping", ""},
		"not YAML":             {"a: [", 0, "did not find", ""},
		"tab":                  {"a:\n\tb: c\n", 2, "cannot start any token", ""},
		"two documents":        {good + "---\na: b\n", 15, "second YAML document", ""},
		"alias":                {good + "audit: {path: &x /a, onFailure: *x}\n", 15, "anchors", ""},
		"unknown field":        {replace("stateDir:", "statDir:"), 5, `unknown field "statDir"`, `is "stateDir" meant?`},
		"unknown nested field": {replace("  role: read", "  rolle: read"), 12, `unknown field "rolle"`, `is "role" meant?`},
		"doubled field":        {good + "clusterID: b\n", 15, "already defined", "keep one"},
		"wrong type":           {replace("generation: 4", "generation: many"), 13, "cannot unmarshal", ""},
		"negative generation":  {replace("generation: 4", "generation: -1"), 13, "cannot unmarshal", ""},
		"generation zero":      {replace("generation: 4", "generation: 0"), 13, "at least 1", "starts at 1"},
		"too large":            {strings.Repeat("#", 1<<20+1), 0, "at most", ""},
		"apiVersion":           {replace("kms-plugin.io/v1", "kms-plugin.io/v9"), 1, "not a version", "write apiVersion"},
		"kind":                 {replace("KMSPluginConfiguration", "Secret"), 2, "not the kind", "write kind"},
		"clusterID":            {replace("prod-eu-1", "a b"), 3, "not a cluster id", ""},
		"clusterID missing":    {replace("clusterID: prod-eu-1\n", ""), 1, "not a cluster id", ""},
		"abstract socket":      {replace("/run/kms-plugin/kms.sock", `"@kms"`), 4, "abstract", ""},
		"relative socket":      {replace("/run/kms-plugin/kms.sock", "kms.sock"), 4, "not a clean absolute path", ""},
		"long socket":          {replace("/run/kms-plugin/kms.sock", "/"+strings.Repeat("x", 107)), 4, "108 bytes", "shorter"},
		"overflow uid":         {replace("kms.sock}", "kms.sock, allowedUIDs: [0, 65534]}"), 4, "uid 65534", ""},
		"relative stateDir":    {replace("/var/lib/kms-plugin", "../x"), 5, "not a clean absolute path", ""},
		"public metrics":       {good + "listenAddress: 0.0.0.0:8082\n", 15, "not a loopback", "127.0.0.1"},
		"no port":              {good + "listenAddress: localhost\n", 15, "not host:port", ""},
		"wrapping":             {good + "wrapping: none\n", 15, "neither local-kek nor direct", ""},
		"no keys":              {good[:strings.Index(good, "keys:")], 1, "no key is given", ""},
		"no write key":         {replace("role: write", "role: read"), 6, "no key has role write", ""},
		"two writers at once":  {replace("role: read", "role: write"), 11, "both write from the same time", ""},
		"only a future writer": {replace("role: write", "role: write\n  activateAt: 2999-01-01T00:00:00Z"), 6, "activates in the future", ""},
		"activateAt on read":   {replace("role: read", "role: read\n  activateAt: 2026-01-01T00:00:00Z"), 13, "only a key with role write", ""},
		"role":                 {replace("role: read", "role: primary"), 12, "none of write, read, retired", ""},
		"doubled name":         {replace("name: lab", "name: prod-2026"), 11, "used by keys[0]", ""},
		"bad name":             {replace("name: lab", "name: Lab!"), 11, "not a key name", ""},
		"two providers":        {good + "  awskms: {keyARN: x}\n", 11, "exactly one provider", ""},
		"no provider":          {replace("  localfile: {path: /etc/kms-plugin/lab.keyset}\n", ""), 11, "exactly one provider", ""},
		"no ARN":               {replace("keyARN: "+arn, `keyARN: ""`), 10, "keyARN is missing", ""},
		"reserved context":     {replace("keyARN: "+arn, "keyARN: "+arn+"\n    encryptionContext: {kms-plugin-type: seed}"), 11, "reserved", ""},
		"relative keyset":      {replace("/etc/kms-plugin/lab.keyset", "lab"), 14, "not a clean absolute path", ""},
		"onFailure":            {good + "audit: {onFailure: ignore}\n", 15, "neither continue nor refuse", ""},
		"sync":                 {good + "audit: {path: /a, sync: always}\n", 15, "none of none, interval, each", ""},
		"refuse without path":  {good + "audit: {onFailure: refuse}\n", 15, "needs a path", ""},
		"bad duration":         {good + "probe: {interval: 60}\n", 15, "cannot unmarshal", ""},
		"short duration":       {good + "probe: {interval: 1ms}\n", 15, "out of range", "durations look like"},
		"observations":         {good + "rotation: {observations: 0}\n", 15, "out of range", ""},
		"maxOutageDecrypt":     {good + "health: {maxOutageDecrypt: 1h}\n", 15, "less than maxOutage", ""},
		"unknown recipient":    {replace("  role: write", "  role: write\n  alsoWrapWith: [lab2]"), 9, `no key "lab2"`, "role: read"},
		"its own recipient":    {replace("  role: write", "  role: write\n  alsoWrapWith: [prod-2026]"), 9, "this very KEK", "awskms.replicas"},
		"recipient twice":      {replace("  role: write", "  role: write\n  alsoWrapWith: [lab, lab]"), 9, "named twice", "keep one"},
		"retired recipient":    {strings.Replace(replace("  role: write", "  role: write\n  alsoWrapWith: [lab]"), "role: read", "role: retired", 1), 9, "is retired", "take it out"},
		"many recipients":      {replace("  role: write", "  role: write\n  alsoWrapWith: [a, b, c, d, e]"), 9, "5 keys are named", "stored with every object"},
		"recipient, direct":    {replace("  role: write", "  role: write\n  alsoWrapWith: [lab]") + "wrapping: direct\n", 9, "no local KEK", "local-kek"},
		"quorum":               {replace("keyARN: "+arn, "keyARN: "+arn+"\n    replicas: [x]\n    regionQuorum: most"), 12, "neither any nor all", ""},
		"quorum of one":        {replace("keyARN: "+arn, "keyARN: "+arn+"\n    regionQuorum: all"), 11, "one region alone", "replicas"},
		"suite":                {good + "suite: aes-128\n", 15, "neither xaes-256-gcm nor aes-256-gcm", "FIPS"},
		"hardening mode":       {good + "hardening: {files: log}\n", 15, "neither enforce nor off", "syscalls has log"},
		"privileges alone":     {good + "hardening: {privileges: off}\n", 15, "not to be had alone", "loosen syscalls and files"},
		"relative readable":    {good + "hardening: {readable: [etc]}\n", 15, "not a clean absolute path", ""},
		"logLevel":             {good + "logLevel: loud\n", 15, "none of debug", ""},
	} {
		c, problems := config.Parse([]byte(tc.in))
		found := slices.ContainsFunc(problems, func(p config.Problem) bool {
			return (tc.line == 0 || p.Line == tc.line) && strings.Contains(p.Message, tc.want) && strings.Contains(p.Hint, tc.hint)
		})
		if c != nil || !found {
			t.Errorf("%s: Parse = %v, %v; want line %d: %q, hint %q", name, c != nil, problems, tc.line, tc.want, tc.hint)
		}
	}
}

func TestProblemsText(t *testing.T) {
	p := config.Problems{{Line: 3, Path: "a.b", Message: "is wrong", Hint: "write c"}, {Message: "odd", Note: true}}
	if got, want := p.Error(), "line 3: a.b: is wrong\n  hint: write c\nnote: odd"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if n := len(p.Fatal()); n != 1 {
		t.Errorf("%d fatal problems, want 1", n)
	}
}

func TestCompare(t *testing.T) {
	change := func(s, old, new string) string { return strings.Replace(s, old, new, 1) }
	second := good + "- {name: next, role: read, localfile: {path: /next}}\n"
	retired := change(good, "role: read", "role: retired")
	for name, tc := range map[string]struct {
		old, now, want string
		note           bool
	}{
		"same":                {good, good, "", false},
		"key added to read":   {good, second, "", false},
		"retired key dropped": {retired, good[:strings.Index(good, "- name: lab")], "", false},
		"cluster":             {good, change(good, "prod-eu-1", "prod-eu-2"), `it was "prod-eu-1"`, false},
		"key dropped":         {good, good[:strings.Index(good, "- name: lab")], `key "lab" (role read) is gone`, false},
		"key renamed":         {good, change(good, "name: lab", "name: lab2"), "was renamed", true},
		"another KEK":         {good, change(good, "lab.keyset", "other.keyset"), "stood for", false},
		"generation falls":    {good, change(good, "generation: 4", "generation: 3"), "must not fall", false},
		"retired writes":      {retired, change(change(good, "role: write", "role: read"), "role: read\n  generation", "role: write\n  generation"), "used before", false},
		"context":             {good, change(good, arn, arn+"\n    encryptionContext: {a: b}"), "could not be opened", false},
		"writes at once":      {good, change(good+"- {name: next, role: write, activateAt: 2026-01-01T00:00:00Z, localfile: {path: /next}}\n", "x", "x"), "before every instance can read it", false},
		"hardening":           {good, good + "hardening: {files: off}\n", "a reload does not change it", true},
		"socket":              {good, change(good, "kms.sock", "k.sock"), "a reload does not change it", true},
	} {
		t.Run(name, func(t *testing.T) {
			parse := func(s string) *config.Config {
				c, p := config.Parse([]byte(s))
				if p != nil {
					t.Fatalf("test is broken: %v", p)
				}
				return c
			}
			got := config.Compare(parse(tc.old), parse(tc.now))
			if tc.want == "" {
				if got != nil {
					t.Errorf("Compare = %v, want nothing", got)
				}
				return
			}
			if !slices.ContainsFunc(got, func(p config.Problem) bool { return strings.Contains(p.Message, tc.want) && p.Note == tc.note }) {
				t.Errorf("Compare = %v, want %q (note %t)", got, tc.want, tc.note)
			}
		})
	}
}

// docs/configuration.md lists exactly the fields there are.
func TestDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllSubmatch(doc, -1) {
		listed = append(listed, string(m[1]))
	}
	want := config.Fields()
	slices.Sort(want)
	slices.Sort(listed)
	if d := cmp.Diff(want, listed); d != "" {
		t.Errorf("docs/configuration.md (+) and the fields (-) differ:\n%s", d)
	}
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../deploy/examples/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("examples: %v, %v", files, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, p := config.Parse(data); p != nil {
			t.Errorf("%s: %v", f, p)
		}
	}
}

func TestStateDirOfABrokenFile(t *testing.T) {
	for in, want := range map[string]string{
		good: "/var/lib/kms-plugin", "stateDir: /x\nkeys: [": "/x", "": "", "stateDir: [1]\n": "",
	} {
		if got := config.StateDir([]byte(in)); got != want {
			t.Errorf("StateDir(%.30q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("a: &b [*b]"))
	f.Add([]byte("keys: [{generation: 0}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, p := config.Parse(data)
		if (c == nil) != (p.Fatal() != nil) {
			t.Fatalf("Parse = %v, %v", c, p)
		}
		for _, one := range p {
			if strings.ContainsAny(one.Message, "\n\r") {
				t.Fatalf("a problem of several lines: %q", one.Message)
			}
		}
		_ = fmt.Sprint(p, config.StateDir(data))
	})
}
