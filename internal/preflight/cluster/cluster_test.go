package cluster_test

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"kms-plugin.io/internal/cli"
	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/cluster"
	"kms-plugin.io/internal/status"
)

func TestGoodNode(t *testing.T) {
	s := good()
	s.stored = etcd{"secrets/ns/a": under("ours"), "configmaps/ns/a": "k8s\x00"}
	s.plugins = map[string]*status.Plugin{"a:1": runs("aa", "k1", "k2"), "b:1": runs("aa", "k1", "k2")}
	r := s.run(t)
	var names []string
	for _, c := range r.Checks {
		names = append(names, c.Name)
		switch want := map[string]preflight.Level{"plugin-socket": preflight.Warning, "plain-resources": preflight.Note, "coverage": preflight.Note, "identity": preflight.Note}[c.Name]; {
		case want != "" && c.Level != want, want == "" && c.Level != preflight.OK:
			t.Errorf("%s: %s: %s", c.Name, c.Level, c.Message)
		}
	}
	if !slices.Equal(names, cluster.Names()) {
		t.Errorf("ran %v, Names are %v", names, cluster.Names())
	}
	if !r.Passed {
		t.Errorf("not passed: %s", r.Verdict())
	}
}

// Nothing that is missing makes a check fail by itself, or panic.
func TestNothingThere(t *testing.T) {
	r := preflight.Run(t.Context(), cluster.Checks(cluster.Options{}), preflight.Options{})
	for _, c := range r.Checks {
		if c.Level != preflight.Skipped {
			t.Errorf("%s: %s: %s", c.Name, c.Level, c.Message)
		}
	}
}

func swapText(old, replacement string) func(*setup) {
	return func(s *setup) {
		for _, f := range []*string{&s.plugin, &s.encryption, &s.manifest} {
			*f = strings.Replace(*f, old, replacement, 1)
		}
	}
}

// Each wrong thing is named in one line, with the remedy.
func TestWhatIsWrongIsNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		wrong        func(*setup)
		check        string
		level        preflight.Level
		text, remedy string
	}{
		"plugin config with a typo":  {swapText("stateDir:", "statedir:"), "plugin-config", preflight.Problem, `unknown field "statedir"`, `is "stateDir" meant?`},
		"plugin config not there":    {func(s *setup) { s.plugin = "" }, "plugin-config", preflight.Problem, "no such file", "--plugin-config"},
		"alias for a key ARN":        {swapText("arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555", "alias/prod"), "plugin-config", preflight.Problem, "is an alias", "aws kms describe-key"},
		"key ARN cut short":          {swapText("4444-555555555555", "4444"), "plugin-config", preflight.Problem, "line 9: keys[0].awskms: keyARN", "it looks like arn:aws:kms"},
		"no static pod":              {func(s *setup) { s.manifest = "" }, "apiserver-manifest", preflight.Skipped, "there is no ", ""},
		"manifest of something else": {swapText("- name: kube-apiserver", "- name: etcd"), "apiserver-manifest", preflight.Problem, "not a pod with a container kube-apiserver", "--manifest"},
		"manifest is not YAML":       {func(s *setup) { s.manifest = "\t{" }, "apiserver-manifest", preflight.Problem, "manifest.yaml: yaml", "--manifest"},
		"no encryption flag":         {swapText("    - --encryption-provider-config=/etc/kubernetes/enc/enc.yaml\n", ""), "apiserver-manifest", preflight.Problem, "nothing is encrypted", "add --encryption-provider-config=FILE"},
		"config is not mounted":      {swapText("    - {name: enc, mountPath: /etc/kubernetes/enc, readOnly: true}\n", ""), "apiserver-config-mount", preflight.Problem, "/etc/kubernetes/enc/enc.yaml is not mounted", "mount the directory /etc/kubernetes/enc"},
		"config is not there":        {func(s *setup) { s.encryption = "" }, "apiserver-config-mount", preflight.Problem, "which cannot be read", "write it"},
		"config mounted as a file": {func(s *setup) {
			swapText("mountPath: /etc/kubernetes/enc,", "mountPath: /etc/kubernetes/enc/enc.yaml,")(s)
			swapText("path: DIR/enc,", "path: DIR/enc/enc.yaml,")(s)
		}, "apiserver-config-mount", preflight.Warning, "as a single file", "mount the directory"},
		"relative config": {swapText("config=/etc/kubernetes/enc/enc.yaml", "config=enc.yaml"), "apiserver-config-mount", preflight.Problem, "not an absolute path", "full path"},
		"another config is meant": {func(s *setup) {
			s.options = func(dir string, o *cluster.Options) { o.Encryption = dir + "/manifest.yaml" }
		}, "apiserver-config-mount", preflight.Problem, "/enc/enc.yaml of this host, not ", "correct the flag"},
		"socket directory not mounted": {swapText("    - {name: kms, mountPath: /run/kms-plugin}\n", ""), "apiserver-socket-mount", preflight.Problem, "the socket directory /run/kms-plugin of provider \"ours\" is not mounted", "mount the directory /run/kms-plugin from the host"},
		"socket mount from nowhere":    {swapText("{name: kms, hostPath: {path: DIR/run, type: DirectoryOrCreate}}", "{name: kms, emptyDir: {}}"), "apiserver-socket-mount", preflight.Problem, "is not mounted", "from the host"},
		"socket mounted as a file":     {swapText("mountPath: /run/kms-plugin}", "mountPath: /run/kms-plugin/kms.sock}"), "apiserver-socket-mount", preflight.Problem, "is mounted as a file", "mount the directory"},
		"no automatic reload":          {swapText("automatic-reload=true", "automatic-reload=false"), "apiserver-reload", preflight.Warning, "only when it restarts", "=true"},
		"API server of another user":   {swapText("  hostNetwork: true", "  securityContext: {runAsUser: 1001}"), "apiserver-user", preflight.Problem, "runs as uid 1001", "add 1001 to socket.allowedUIDs"},
		"root is not allowed":          {swapText("kms.sock}", "kms.sock, allowedUIDs: [1001]}"), "apiserver-user", preflight.Problem, "runs as uid 0", "add 0"},
		"config with a typo":           {swapText("providers:", "provider:"), "encryption-config", preflight.Problem, "field provider not found", "before kube-apiserver starts"},
		"KMS v1":                       {swapText("apiVersion: v2, ", "apiVersion: v1, "), "kms-version", preflight.Problem, "KMS v1", "apiVersion: v2"},
		"no KMS version":               {swapText("apiVersion: v2, ", ""), "kms-version", preflight.Problem, "speaks KMS v1", "without it v1 is meant"},
		"no kms provider":              {func(s *setup) { dropKMS(s) }, "kms-version", preflight.Warning, "no kms provider", "add kms-plugin"},
		"endpoint is no socket":        {swapText("unix:///run", "http://127.0.0.1/run"), "kms-endpoint", preflight.Problem, "does not begin with unix://", "three slashes"},
		"endpoint is relative":         {swapText("unix:///run/kms-plugin", "unix://run/kms-plugin"), "kms-endpoint", preflight.Problem, `kube-apiserver dials "/kms-plugin/kms.sock"`, "three slashes"},
		"endpoint is abstract":         {swapText("unix:///run/kms-plugin/kms.sock", "unix:///@kms"), "kms-endpoint", preflight.Problem, "abstract", "three slashes"},
		"endpoint is empty":            {swapText("unix:///run/kms-plugin/kms.sock", "unix:///"), "kms-endpoint", preflight.Problem, "names no socket", "three slashes"},
		"endpoint of another plugin":   {swapText("DIR/run/kms.sock", "DIR/run/other.sock"), "kms-endpoint", preflight.Problem, "no kms provider dials socket.path of kms-plugin", "the same file"},
		"timeout too short":            {swapText("timeout: 3s", "timeout: 1s"), "kms-timeout", preflight.Warning, "timeout 1s", "timeout: 3s"},
		"timeout too long":             {swapText("timeout: 3s", "timeout: 1m"), "kms-timeout", preflight.Warning, "holds requests", "timeout: 3s"},
		"timeout is none":              {swapText("timeout: 3s", "timeout: soon"), "kms-timeout", preflight.Problem, `timeout "soon"`, "timeout: 3s"},
		"timeout of zero":              {swapText("timeout: 3s", "timeout: 0s"), "kms-timeout", preflight.Problem, `timeout "0s"`, "timeout: 3s"},
		"cachesize":                    {swapText("timeout: 3s", "cachesize: 1000"), "kms-cachesize", preflight.Problem, "kube-apiserver refuses the file", "drop cachesize"},
		"identity first":               {func(s *setup) { identityFirst(s) }, "provider-order", preflight.Warning, "secrets is written in plain text: identity is first", "put kms first"},
		"aescbc first":                 {swapText("  - kms:", "  - aescbc: {keys: [{name: key1, secret: eA==}]}\n  - kms:"), "provider-order", preflight.Note, "secrets by aescbc key1", ""},
		"another plugin first":         {swapText("  - kms:", "  - kms: {apiVersion: v2, name: theirs, endpoint: 'unix:///run/theirs/s'}\n  - kms:"), "provider-order", preflight.Note, "secrets by kms v2 theirs", ""},
		"what is meant is not known":   {func(s *setup) { s.encryption = ""; s.stored = etcd{"secrets/ns/a": plainSecret} }, "coverage", preflight.Note, "what should be encrypted is not known", ""},
		"covered by a wildcard":        {swapText("resources: [secrets]", "resources: ['*.*', secrets]"), "provider-order", preflight.Warning, "secrets: an earlier wildcard", "what is special before"},
		"secrets stay plain":           {swapText("resources: [secrets]", "resources: [configmaps]"), "plain-resources", preflight.Problem, "secrets stay in plain text", "add secrets"},
		"all is encrypted":             {swapText("resources: [secrets]", "resources: ['*.*']"), "plain-resources", preflight.OK, "everything", ""},
		"etcd has a broken value":      {func(s *setup) { s.stored = etcd{"secrets/ns/a": "k8s:enc:kms:v2:ours:\xff"} }, "coverage", preflight.Problem, "1 broken", "kmsctl coverage"},
		"etcd has plain Secrets":       {func(s *setup) { s.stored = etcd{"secrets/ns/a": plainSecret, "secrets/ns/b": under("ours")} }, "coverage", preflight.Warning, "1 plain", "rotate run"},
		"no etcd here":                 {func(s *setup) { s.options = failing(fs.ErrNotExist) }, "coverage", preflight.Skipped, "cannot be read from here", ""},
		"etcd is away":                 {func(s *setup) { s.options = failing(cli.WithHint(errors.New("refused"), "look")) }, "coverage", preflight.Warning, "etcd cannot be read: refused", "look"},
		"renamed provider":             {func(s *setup) { s.stored = etcd{"secrets/ns/a": under("theirs")} }, "provider-names", preflight.Problem, `1 objects (secrets and others) are stored under the kms provider "theirs", and the file has "ours": a provider cannot be renamed`, `name it "theirs" again`},
		"provider dropped too early":   {func(s *setup) { s.stored = etcd{"secrets/ns/a": "k8s:enc:aescbc:v1:key1:" + strings.Repeat("x", 48)} }, "providers-dropped", preflight.Problem, `stored under aescbc "key1"`, "put it back"},
		"provider of another list": {func(s *setup) {
			s.stored = etcd{"secrets/ns/a": under("ours"), "configmaps/ns/a": under("ours")}
			s.encryption += "- resources: [configmaps]\n  providers: [{identity: {}}]\n"
		}, "providers-dropped", preflight.Problem, "1 objects (configmaps and others)", "put it back"},
		"dropped, not renamed": {func(s *setup) { s.stored = etcd{"secrets/ns/a": "k8s:enc:aescbc:v1:key1:" + strings.Repeat("x", 48)} }, "provider-names", preflight.OK, "", ""},
		"identity dropped too early": {func(s *setup) {
			swapText("  - identity: {}\n", "")(s)
			s.stored = etcd{"secrets/ns/a": plainSecret}
		}, "identity", preflight.Problem, "1 objects of secrets are in plain text", "put identity: {} last"},
		"identity dropped in time": {func(s *setup) {
			swapText("  - identity: {}\n", "")(s)
			s.stored = etcd{"secrets/ns/a": under("ours")}
		}, "identity", preflight.OK, "needs it", ""},
		"identity missing, nobody knows": {swapText("  - identity: {}\n", ""), "identity", preflight.Note, "secrets has no identity", ""},
		"one plugin is away":             {plugins(runs("aa"), nil), "plugins-agree", preflight.Warning, "not reached: p1:1 (connection refused)", "ssh -L"},
		"another key_id":                 {plugins(runs("aa"), runs("bb")), "plugins-agree", preflight.Problem, "different key_ids: aa on p0:1; bb on p1:1", "wait for the rotation"},
		"another configuration":          {plugins(runs("aa"), &status.Plugin{Ready: true, ConfigHash: "0123456789abcdef", KeyIDHash: "sha256:aa"}), "plugins-agree", preflight.Problem, "p1:1 runs another configuration than ", "the same file"},
		"not ready":                      {plugins(&status.Plugin{ConfigHash: "same"}), "plugins-agree", preflight.Problem, "p0:1 is not ready", "doctor"},
		"disk differs":                   {plugins(&status.Plugin{Ready: true, DiskDiffers: true}), "plugins-agree", preflight.Problem, "not the one on its disk", "config check"},
		"a stranger":                     {plugins(runs("aa", "k1", "k2"), runs("aa", "k1")), "plugins-know", preflight.Warning, "p1:1 has not met 1 of 2", "kmsctl canary"},
		"more than metrics show":         {plugins(runs("aa", "k1"), &status.Plugin{Ready: true, ConfigHash: "same", KeyIDHash: "sha256:aa", LocalKEKs: 300}), "plugins-know", preflight.Skipped, "more local KEKs", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := good()
			tc.wrong(&s)
			r := s.run(t)
			i := slices.IndexFunc(r.Checks, func(c preflight.Outcome) bool { return c.Name == tc.check })
			got := r.Checks[i]
			if got.Level != tc.level || !strings.Contains(got.Message, tc.text) || !strings.Contains(got.Remedy, tc.remedy) {
				t.Errorf("%s is %s: %s\nhint: %s\nwant %s, %q, hint %q", tc.check, got.Level, got.Message, got.Remedy, tc.level, tc.text, tc.remedy)
			}
			if (got.Level == preflight.Problem || got.Level == preflight.Warning) && got.Remedy == "" {
				t.Errorf("%s has no remedy", tc.check)
			}
			if tc.level == preflight.Problem && r.Passed {
				t.Error("passed")
			}
		})
	}
}
