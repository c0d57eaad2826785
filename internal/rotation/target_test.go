package rotation

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/coverage"
	"kms-plugin.io/internal/metrics"
)

func ring(t *testing.T, keys ...string) *config.Config {
	t.Helper()
	c, problems := config.Parse([]byte("{apiVersion: kms-plugin.io/v1, kind: KMSPluginConfiguration, clusterID: c, socket: {path: /run/k/kms.sock}, stateDir: /run/k, keys: [" + strings.Join(keys, ", ") + "]}"))
	if problems.Fatal() != nil {
		t.Fatal(problems)
	}
	return c
}

func entry(name, role string) string {
	if name == "next" && role == "write" {
		role = "write, activateAt: 2026-01-01T00:00:00Z"
	}
	return fmt.Sprintf("{name: %s, role: %s, localfile: {path: /etc/%s}}", name, role, name)
}

// plugin serves the metrics of one that reports the key_id of a key.
func plugin(t *testing.T, key, keyID string) (address string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "# TYPE kms_plugin_ready gauge\nkms_plugin_ready 1\n# TYPE kms_plugin_key_state gauge\nkms_plugin_key_state{key=\"%[1]s\",op=\"wrap\",state=\"ok\"} 1\n# TYPE kms_plugin_key_info gauge\nkms_plugin_key_info{key=\"%[1]s\",role=\"write\",active=\"true\"} 1\n"+
			"# TYPE kms_plugin_key_id_hash_info gauge\nkms_plugin_key_id_hash_info{key_id_hash=\"%[2]s\"} 1\n", key, metrics.KeyIDHash(keyID))
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// The old key_id of a key has its name too: where a name could mean it, the name is
// refused, or the plugins decide.
func TestAName(t *testing.T) {
	first, second, other := "prod:"+strings.Repeat("1", 32), "prod:"+strings.Repeat("2", 32), "next:"+strings.Repeat("3", 32)
	for name, tt := range map[string]struct {
		ring    []string
		stored  []string
		writes  string // the API servers
		plugins []string
		want    string // error, or none
		doubt   bool   // it is said that nothing tells old from new
	}{
		"new material is awaited":               {[]string{entry("prod", "write")}, []string{first}, first, nil, "everything was under key \"prod\" before, as " + first + " (1 objects)", false},
		"the same, asking the plugins":          {[]string{entry("prod", "write")}, []string{first}, first, []string{first}, "everything was under key", false},
		"the same beside a key to come":         {[]string{entry("prod", "write"), entry("next", "read")}, []string{first}, first, nil, "everything was under key", false},
		"the same beside a retired key":         {[]string{entry("prod", "write"), entry("next", "retired")}, []string{first}, first, nil, "everything was under key", false},
		"two stand under it":                    {[]string{entry("prod", "write"), entry("next", "write")}, []string{first, second, other}, second, nil, "several key_ids", false},
		"two, and the plugins tell":             {[]string{entry("prod", "write"), entry("next", "write")}, []string{first, second, other}, second, []string{second, second}, "", false},
		"two, and the API servers lag":          {[]string{entry("prod", "write"), entry("next", "write")}, []string{first, second, other}, first, []string{second, second}, "writes under key_id \"" + first, false},
		"the plugins differ":                    {[]string{entry("prod", "write"), entry("next", "write")}, []string{first, second}, second, []string{first, second}, "the plugins report several key_ids", false},
		"a plugin writes under another":         {[]string{entry("prod", "write"), entry("next", "write")}, []string{first}, first, []string{other}, `writes under key "next"`, true},
		"a new KEK":                             {[]string{entry("prod", "write"), entry("next", "write")}, []string{other}, first, nil, "", false},
		"run again after a new KEK":             {[]string{entry("prod", "write"), entry("next", "write")}, []string{first}, first, nil, "", true},
		"something is left under a retired key": {[]string{entry("prod", "write"), entry("next", "retired")}, []string{first, other}, first, nil, "", false},
		"the first encryption of all":           {[]string{entry("prod", "write")}, []string{other}, first, nil, "", false},
		"no such name":                          {[]string{entry("next", "write")}, nil, first, nil, `there is no key "prod"`, false},
	} {
		w := newWorld(tt.writes, tt.writes)
		for i, id := range tt.stored {
			w.etcd[fmt.Sprintf("/registry/secrets/ns/%d", i)] = under("ours", id)
		}
		o := w.options(t, rules)
		o.Target, o.Config = "prod", ring(t, tt.ring...)
		o.Names = coverage.NewNames(o.Config, time.Now())
		for _, id := range tt.plugins {
			label, _, _ := strings.Cut(id, ":")
			o.Plugins = append(o.Plugins, plugin(t, label, id))
		}
		var said []string
		o.Say = func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
		_, err := Run(t.Context(), o)
		if doubt := strings.Contains(strings.Join(said, "\n"), "already, as "); doubt != tt.doubt {
			t.Errorf("%s: %q", name, said)
		}
		var told *Error
		if tt.want == "" { // these values have no header, so none proves the name in the end
			tt.want = "do not prove a name"
		}
		if !errors.As(err, &told) || !strings.Contains(err.Error(), tt.want) || told.Hint() == "" {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if refused := tt.want != "do not prove a name"; refused && len(w.patched) > 0 {
			t.Errorf("%s: %d objects were written", name, len(w.patched))
		}
		o.Target = tt.writes // exact: nothing to ask
		o.Names, o.Config, o.Plugins = nil, nil, nil
		if _, err := Run(t.Context(), o); err != nil {
			t.Errorf("%s, by its key_id: %v", name, err)
		}
	}
}
