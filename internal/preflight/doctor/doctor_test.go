package doctor_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/preflight/doctor"
	"kms-plugin.io/test/awsenv"
	"kms-plugin.io/test/fakekms"
)

const cluster = "prod-eu-1"

// node is a node with a configuration for a key in the fake cloud.
type node struct {
	listen string // listenAddress
	t      *testing.T
	dir    string
	cloud  *fakekms.Server
	arn    string
	config string
	old    string // ARN of a second key
	pod    string // file of kube-apiserver's
}

func newNode(t *testing.T) *node {
	t.Helper()
	awsenv.Clear(t)
	cloud, err := fakekms.Start(fakekms.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cloud.Close)
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", cloud.CredentialsURL("default"))
	dir, err := os.MkdirTemp("", "dr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{t: t, dir: dir, cloud: cloud, arn: cloud.CreateKey("eu-west-1", fakekms.KeyOptions{})}
	cloud.SetPolicy(n.arn, fakekms.LeastPrivilege(cluster))
	n.configure(n.arn, "")
	return n
}

func (n *node) configure(arn, extra string) {
	n.config = fmt.Sprintf(`apiVersion: kms-plugin.io/v1
kind: KMSPluginConfiguration
clusterID: %[1]s
socket: {path: %[2]s/s}
stateDir: %[2]s
listenAddress: %[5]q
keys:
- name: prod
  role: write
  awskms: {keyARN: "%[3]s", endpoint: "%[4]s"}
`, cluster, n.dir, arn, n.cloud.URL(), n.listen) + extra
}

func (n *node) examine() *preflight.Report {
	n.t.Helper()
	file := filepath.Join(n.dir, "config.yaml")
	if err := os.WriteFile(file, []byte(n.config), 0o600); err != nil {
		n.t.Fatal(err)
	}
	o := doctor.Options{Config: file, STSEndpoint: n.cloud.URL(), Manifest: n.pod}
	return preflight.Run(n.t.Context(), doctor.Checks(n.t.Context(), o), preflight.Options{Program: "test"})
}

func find(t *testing.T, r *preflight.Report, name string) preflight.Outcome {
	t.Helper()
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %s in %+v", name, r.Checks)
	return preflight.Outcome{}
}

func TestHealthyNode(t *testing.T) {
	n := newNode(t)
	r := n.examine()
	for _, c := range r.Checks {
		switch want := map[string]preflight.Level{"socket": preflight.Warning, "process": preflight.Skipped, "resolver": c.Level, "hardening": preflight.Skipped, "imds": preflight.Skipped, "web-identity": preflight.Skipped, "swap": c.Level}[c.Name]; {
		case want != "" && c.Level != want, want == "" && c.Level != preflight.OK:
			t.Errorf("%s: %s: %s", c.Name, c.Level, c.Message)
		}
		if !slices.Contains(doctor.Names(), c.Name) {
			t.Errorf("check %s is not in Names", c.Name)
		}
	}
	if !r.Passed || len(r.Checks) != len(doctor.Names())-1 { // localfile is of other keys
		t.Errorf("passed %t with %d checks: %+v", r.Passed, len(r.Checks), r.Checks)
	}
	for _, q := range n.cloud.Requests() {
		if q.Error == "" && (q.Op == "ReEncrypt" || q.Op == "CreateGrant") || q.Op == "Encrypt" && q.Error == "" && q.Context["kms-plugin-type"] != "probe" {
			t.Errorf("looking did %+v", q)
		}
	}
}

// Each wrong thing is named in one line, with the remedy.
func TestWhatIsWrongIsNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		wrong        func(n *node)
		check        string
		level        preflight.Level
		text, remedy string
		onlyThis     bool // no other check is a problem
	}{
		"config with a typo":   {wrong: func(n *node) { n.configure(n.arn, "statedir: /x\n") }, check: "config", level: preflight.Problem, text: `unknown field "statedir"`, remedy: `is "stateDir" meant?`, onlyThis: true},
		"config is not there":  {wrong: func(n *node) { n.config = "" }, check: "config", level: preflight.Problem, text: "the file is empty", remedy: "apiVersion", onlyThis: true},
		"several faults":       {wrong: func(n *node) { n.configure(n.arn, "logLevel: loud\nwrapping: none\n") }, check: "config", level: preflight.Problem, text: "(and 1 more: kms-plugin config check ", onlyThis: true},
		"alias for an ARN":     {wrong: func(n *node) { n.configure("alias/prod", "") }, check: "config", level: preflight.Problem, text: "is an alias", remedy: "aws kms describe-key", onlyThis: true},
		"wrong key ARN":        {wrong: func(n *node) { n.configure(n.arn[:len(n.arn)-4]+"0000", "") }, check: "kms-roundtrip", level: preflight.Problem, text: "NotFoundException", remedy: "compare keyARN", onlyThis: true},
		"key of other account": {wrong: func(n *node) { n.configure(strings.Replace(n.arn, "111122223333", "999988887777", 1), "") }, check: "kms-roundtrip", level: preflight.Problem, text: "NotFoundException", remedy: "compare keyARN", onlyThis: true},
		"expired credential":   {wrong: func(n *node) { n.cloud.SetCredentials("default", -time.Hour, false) }, check: "credential", level: preflight.Problem, text: "has ended already", remedy: "instance role", onlyThis: true},
		"soon to expire":       {wrong: func(n *node) { n.cloud.SetCredentials("default", 4*time.Minute, false) }, check: "credential", level: preflight.Warning, text: "expires in ", remedy: "renews"},
		"role withdrawn":       {wrong: func(n *node) { n.cloud.SetCredentials("default", 0, true) }, check: "credential", level: preflight.Problem, text: "NoCredentials", remedy: "source of the credential", onlyThis: true},
		"token refused": {wrong: func(n *node) { n.cloud.SetFault(fakekms.Fault{Op: "Encrypt", Kind: fakekms.ExpiredToken}) },
			check: "kms-roundtrip", level: preflight.Problem, text: "ExpiredTokenException", remedy: "was not renewed"},
		"clock is off":  {wrong: func(n *node) { n.cloud.SetClock(10 * time.Minute) }, check: "clock", level: preflight.Problem, text: "10m0s off", remedy: "set the clock"},
		"clock drifts":  {wrong: func(n *node) { n.cloud.SetClock(-time.Minute) }, check: "clock", level: preflight.Warning, text: "1m0s off", remedy: "set the clock"},
		"cloud refuses": {wrong: func(n *node) { n.cloud.Refuse() }, check: "kms-reach", level: preflight.Problem, text: "outage", remedy: "curl -v http://127.0.0.1", onlyThis: true},
		"STS away": {wrong: func(n *node) {
			n.cloud.SetFault(fakekms.Fault{Op: "GetCallerIdentity", Kind: fakekms.Deny})
		}, check: "caller", level: preflight.Note, text: "serving does not need"},
		"no right to encrypt": {wrong: func(n *node) { n.cloud.SetPolicy(n.arn, []fakekms.Statement{{Actions: []string{"kms:Decrypt"}}}) },
			check: "kms-roundtrip", level: preflight.Problem, text: "authorization (AccessDeniedException)", remedy: "allow kms:Encrypt"},
		"key disabled":      {wrong: func(n *node) { n.cloud.SetState(n.arn, fakekms.Disabled) }, check: "key-state", level: preflight.Problem, text: "its state is Disabled", remedy: "aws kms enable-key"},
		"deletion pending":  {wrong: func(n *node) { n.schedule() }, check: "key-state", level: preflight.Problem, text: "it will be deleted at ", remedy: "cancel-key-deletion"},
		"no DescribeKey":    {wrong: func(n *node) { n.cloud.SetPolicy(n.arn, fakekms.LeastPrivilege(cluster)[:1]) }, check: "key-state", level: preflight.Note, text: "kms:DescribeKey"},
		"no rotation right": {wrong: func(n *node) { n.cloud.SetPolicy(n.arn, fakekms.LeastPrivilege(cluster)[:1]) }, check: "key-rotation", level: preflight.Note, text: "kms:GetKeyRotationStatus"},
		"no rotation": {wrong: func(n *node) {
			n.arn = n.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{NoRotation: true})
			n.cloud.SetPolicy(n.arn, fakekms.LeastPrivilege(cluster))
			n.configure(n.arn, "")
		}, check: "key-rotation", level: preflight.Warning, text: "rotation is off", remedy: "enable-key-rotation"},
		"signing key": {wrong: func(n *node) {
			n.arn = n.cloud.CreateKey("eu-west-1", fakekms.KeyOptions{SignOnly: true})
			n.cloud.SetPolicy(n.arn, fakekms.LeastPrivilege(cluster))
			n.configure(n.arn, "")
		}, check: "key-state", level: preflight.Problem, text: "SIGN_VERIFY", remedy: "ENCRYPT_DECRYPT"},
		"may re-encrypt": {wrong: func(n *node) { n.allowAlso("kms:ReEncryptFrom", "kms:ReEncryptTo") }, check: "denied-reencrypt", level: preflight.Problem, text: "may do kms:ReEncrypt", remedy: "deny kms:ReEncrypt*", onlyThis: true},
		"may grant":      {wrong: func(n *node) { n.allowAlso("kms:CreateGrant") }, check: "denied-grant", level: preflight.Problem, text: "may do kms:CreateGrant", remedy: "deny kms:CreateGrant", onlyThis: true},
		"may all":        {wrong: func(n *node) { n.cloud.SetPolicy(n.arn, nil) }, check: "denied-foreign-cluster", level: preflight.Problem, text: "for another cluster", remedy: "kms:EncryptionContext:kms-plugin-cluster is " + cluster},
		"slow": {wrong: func(n *node) {
			n.cloud.SetFault(fakekms.Fault{Op: "Decrypt", Latency: 800 * time.Millisecond, Kind: fakekms.Throttle, Limit: 1})
		}, check: "kms-roundtrip", level: preflight.OK, text: "unwrapped in "},
		"no state directory": {wrong: func(n *node) {
			n.config = strings.Replace(n.config, "stateDir: "+n.dir, "stateDir: "+n.dir+"/none", 1)
		}, check: "state-dir", level: preflight.Problem, text: "is not there", remedy: "install -d -m 0700", onlyThis: true},
		"no socket directory": {wrong: func(n *node) {
			n.config = strings.Replace(n.config, n.dir+"/s}", n.dir+"/none/s}", 1)
		}, check: "socket-directory", level: preflight.Problem, text: "no such file", remedy: "install -d -m 0700", onlyThis: true},
		"open socket directory": {wrong: func(n *node) {
			if err := os.Chmod(n.dir, 0o770); err != nil {
				n.t.Fatal(err)
			}
		}, check: "socket-directory", level: preflight.Problem, text: "can be written by others", remedy: "chmod go-w"},
		"dead socket": {wrong: func(n *node) { n.bind(true) }, check: "socket", level: preflight.Warning, text: "nobody serves it", remedy: "start kms-plugin"},
		"open socket": {wrong: func(n *node) {
			n.bind(false)
			if err := os.Chmod(n.dir+"/s", 0o666); err != nil {
				n.t.Fatal(err)
			}
		}, check: "socket", level: preflight.Problem, text: "others may open socket", remedy: "chmod 0600"},
		"silent server":          {wrong: func(n *node) { n.bind(false) }, check: "socket", level: preflight.Problem, text: "DeadlineExceeded", remedy: "log of the plugin"},
		"IMDSv1":                 {wrong: func(n *node) { n.instance(true) }, check: "imds", level: preflight.Warning, text: "IMDSv1 is on", remedy: "--http-tokens required"},
		"IMDSv2, hop limit":      {wrong: func(n *node) { n.instance(false) }, check: "imds", level: preflight.Note, text: "the hop limit cannot be seen from here"},
		"key that only reads":    {wrong: func(n *node) { n.second("read") }, check: "kms-roundtrip/old", level: preflight.OK, text: "it may decrypt (dry run)"},
		"reader may not decrypt": {wrong: func(n *node) { n.second("retired"); n.denyOld() }, check: "kms-roundtrip/old", level: preflight.Problem, text: "may not decrypt", remedy: "allow kms:Decrypt"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			tc.wrong(n)
			r := n.examine()
			checkName, subject, _ := strings.Cut(tc.check, "/")
			var got preflight.Outcome
			for _, c := range r.Checks {
				if c.Name == checkName && (subject == "" || c.Subject == subject) {
					got = c
					break
				}
			}
			if got.Level != tc.level || !strings.Contains(got.Message, tc.text) || !strings.Contains(got.Remedy, tc.remedy) {
				t.Errorf("%s is %s: %s\nhint: %s\nwant %s, %q, hint %q", tc.check, got.Level, got.Message, got.Remedy, tc.level, tc.text, tc.remedy)
			}
			if strings.Contains(got.Message, "\n") {
				t.Errorf("%q is more than a line", got.Message)
			}
			if r.Passed != (r.Problems == 0) || tc.level == preflight.Problem && r.Passed {
				t.Errorf("passed %t with %d problems", r.Passed, r.Problems)
			}
			if tc.onlyThis && r.Problems != 1 {
				t.Errorf("%d problems for one cause: %+v", r.Problems, r.Checks)
			}
		})
	}
}

func (n *node) allowAlso(actions ...string) {
	n.cloud.SetPolicy(n.arn, append(fakekms.LeastPrivilege(cluster), fakekms.Statement{Actions: actions}))
}

func (n *node) bind(dead bool) {
	n.t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.dir + "/s", Net: "unix"})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.Chmod(n.dir+"/s", 0o600); err != nil {
		n.t.Fatal(err)
	}
	if dead {
		ln.SetUnlinkOnClose(false)
		ln.Close()
		return
	}
	n.t.Cleanup(func() { ln.Close() })
}

func (n *node) instance(v1 bool) {
	m := n.cloud.StartIMDS("default", v1)
	n.t.Cleanup(m.Close)
	n.t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
	n.t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", m.URL)
}

func (n *node) schedule() {
	n.cloud.ScheduleDeletion(n.arn, 7*24*time.Hour)
}

func (n *node) second(role string) {
	old := n.cloud.CreateKey("us-east-1", fakekms.KeyOptions{})
	n.cloud.SetPolicy(old, fakekms.LeastPrivilege(cluster))
	n.config += fmt.Sprintf("- name: old\n  role: %s\n  awskms: {keyARN: %q, endpoint: %q}\n", role, old, n.cloud.URL())
	n.old = old
}

func (n *node) denyOld() {
	n.cloud.SetPolicy(n.old, []fakekms.Statement{{Actions: []string{"kms:DescribeKey"}}})
}

// What the daemon says of its hardening is listed, and what it lacks.
func TestHardeningIsListed(t *testing.T) {
	metrics := ""
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "# TYPE kms_plugin_ready gauge\nkms_plugin_ready 1\n# TYPE kms_plugin_hardening_info gauge\n"+metrics)
	}))
	t.Cleanup(web.Close)
	n := newNode(t)
	n.listen = web.Listener.Addr().String()
	n.configure(n.arn, "")
	line := "kms_plugin_hardening_info{measure=%q,state=%q} %d\n"
	for name, tc := range map[string]struct {
		metrics      string
		level        preflight.Level
		text, remedy string
	}{
		"all":   {fmt.Sprintf(line, "syscalls", "enforced", 1) + fmt.Sprintf(line, "files", "enforced", 1), preflight.OK, "files enforced, syscalls enforced", ""},
		"some":  {fmt.Sprintf(line, "files", "partial", 1) + fmt.Sprintf(line, "dump", "enforced", 1), preflight.Warning, "dump enforced, files partial", "says why for files;"},
		"older": {"# TYPE kms_plugin_build_info gauge\nkms_plugin_build_info{version=\"v0\"} 1\n", preflight.Warning, "kms-plugin v0 has no hardening", "upgrade"},
	} {
		metrics = tc.metrics
		if c := find(t, n.examine(), "hardening"); c.Level != tc.level || !strings.Contains(c.Message, tc.text) || !strings.Contains(c.Remedy, tc.remedy) {
			t.Errorf("%s: %+v, want %s, %q, %q", name, c, tc.level, tc.text, tc.remedy)
		}
	}
}
