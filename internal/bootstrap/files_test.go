package bootstrap_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"

	"kms-plugin.io/internal/bootstrap"
	"kms-plugin.io/internal/daemon"
	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/stored"
	"kms-plugin.io/pkg/keys/localfile"
)

// deploy holds what the default parameters give: one source for both.
func TestDeploy(t *testing.T) {
	all := files(t, cases()["new"])
	systemd := files(t, bootstrap.Params{ClusterID: "prod-eu-1", KeyARN: arn, NodeRole: role, Run: bootstrap.Systemd})
	for path, from := range map[string][]byte{
		"static-pods/kms-plugin.yaml":               data(t, all, "kms-plugin/kms-plugin.yaml"),
		"static-pods/encryption-configuration.yaml": data(t, all, "encryption/2-write.yaml"),
		"static-pods/tmpfiles.conf":                 data(t, all, "kms-plugin/tmpfiles.conf"),
		"systemd/kms-plugin.service":                data(t, systemd, "kms-plugin/kms-plugin.service"),
		"systemd/kms-plugin.socket":                 data(t, systemd, "kms-plugin/kms-plugin.socket"),
		"systemd/kms-canary.service":                data(t, all, "kms-plugin/kms-canary.service"),
		"systemd/kms-canary.timer":                  data(t, all, "kms-plugin/kms-canary.timer"),
		"systemd/sysusers.conf":                     data(t, systemd, "kms-plugin/sysusers.conf"),
		"aws/iam-policy.json":                       data(t, all, "aws/iam-policy.json"),
		"aws/key-policy.json":                       data(t, all, "aws/key-policy.json"),
		"prometheus/alerts.yaml":                    data(t, all, "alerts.yaml"),
	} {
		golden(t, filepath.Join("../../deploy", path), from)
	}
}

// What reads the configuration reads it: all that serve does before it listens.
func TestDaemonTakesConfig(t *testing.T) {
	clearAWS(t)
	for name, p := range cases() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			config := data(t, files(t, p), "kms-plugin/config.yaml")
			if p.LocalFile {
				key := filepath.Join(dir, "k")
				if err := localfile.Create(key); err != nil {
					t.Fatal(err)
				}
				config = bytes.Replace(config, []byte("/etc/kms-plugin/"+p.KeyName+".keyset"), []byte(key), 1)
			}
			path := filepath.Join(dir, "config.yaml")
			if err := os.WriteFile(path, config, 0o600); err != nil {
				t.Fatal(err)
			}
			problems, err := daemon.Check(t.Context(), path, "")
			if err != nil || problems != nil {
				t.Errorf("Check = %v, %v\n%s", problems, err, config)
			}
		})
	}
}

// At no moment of a rollout does one API server write what another cannot read, and
// nothing that was stored before becomes unreadable.
func TestSteps(t *testing.T) {
	secrets := stored.GroupResource{Resource: "secrets"}
	for name, p := range cases() {
		t.Run(name, func(t *testing.T) {
			all := files(t, p)
			ours := encryptionconfig.Provider{Kind: stored.KMSv2, Name: "kms-plugin"}
			if p.ProviderName != "" {
				ours.Name = p.ProviderName
			}
			before := encryptionconfig.Provider{Kind: stored.Plain}
			steps := [][]encryptionconfig.Provider{{before}}
			if p.From != nil {
				c, err := encryptionconfig.Parse(p.From)
				if err != nil {
					t.Fatal(err)
				}
				steps = [][]encryptionconfig.Provider{c.For(secrets).Providers}
				before = steps[0][0]
			}
			paths := []string{"encryption/1-read.yaml", "encryption/2-write.yaml"}
			if !p.Existing && p.From == nil {
				paths, steps = paths[1:], nil
			}
			for _, path := range paths {
				c, err := encryptionconfig.Parse(data(t, all, path))
				if err != nil {
					t.Fatal(err)
				}
				steps = append(steps, c.For(secrets).Providers)
			}
			for i := 1; i < len(steps); i++ {
				if !slices.Contains(steps[i-1], steps[i][0]) {
					t.Errorf("step %d writes under %s, which step %d cannot read", i, steps[i][0], i-1)
				}
				for _, was := range steps[i-1] {
					if !slices.Contains(steps[i], was) {
						t.Errorf("step %d cannot read %s any more", i, was)
					}
				}
			}
			if last := steps[len(steps)-1]; last[0] != ours || !slices.Contains(last, before) {
				t.Errorf("at last it is %v; want %s first, and %s still read", last, ours, before)
			}
			c, err := encryptionconfig.Parse(data(t, all, "encryption/3-finish.yaml"))
			if err != nil || len(c.For(secrets).Providers) != 1 || c.Writes(secrets) != ours {
				t.Errorf("finish: %v, %v", c.For(secrets).Providers, err)
			}
		})
	}
}

// Moving in changes one list and leaves the rest of the file.
func TestMovingInKeepsTheRest(t *testing.T) {
	all := files(t, cases()["from-aescbc"])
	for _, path := range []string{"encryption/1-read.yaml", "encryption/2-write.yaml", "encryption/3-finish.yaml"} {
		c, err := encryptionconfig.Parse(data(t, all, path))
		if err != nil {
			t.Fatal(err)
		}
		if w := c.Writes(stored.GroupResource{Resource: "events"}); w.Kind != stored.Plain {
			t.Errorf("%s: events are written with %s, want plain as before", path, w)
		}
		if w := c.Writes(stored.GroupResource{Resource: "configmaps"}); w != c.Writes(stored.GroupResource{Resource: "secrets"}) {
			t.Errorf("%s: configmaps are written with %s, unlike secrets", path, w)
		}
	}
	for _, f := range all {
		if holds := bytes.Contains(f.Data, []byte("c2VjcmV0IGlzIHNlY3VyZQ==")); holds && (!f.Secret || f.Mode != 0o600) {
			t.Errorf("%s holds a key, and has mode %#o, secret %t", f.Path, f.Mode, f.Secret)
		}
	}
}

func TestModes(t *testing.T) {
	for name, p := range cases() {
		for _, f := range files(t, p) {
			if f.Mode&0o022 != 0 || f.Mode&0o111 != 0 {
				t.Errorf("%s: %s has mode %#o", name, f.Path, f.Mode)
			}
			if private := regexp.MustCompile(`^(kms-plugin/.*\.yaml|encryption/.*)$`).MatchString(f.Path); private && f.Mode != 0o600 {
				t.Errorf("%s: %s has mode %#o, want 0600", name, f.Path, f.Mode)
			}
		}
	}
}

// An alert on a metric that does not exist never fires. That the expressions are PromQL
// is a test of test/alerts.
func TestAlerts(t *testing.T) {
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts := data(t, files(t, cases()["new"]), "alerts.yaml")
	var f struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For string
				Labels           map[string]string
				Annotations      map[string]string
			}
		}
	}
	d := yaml.NewDecoder(bytes.NewReader(alerts))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil {
		t.Fatal(err)
	}
	metric := regexp.MustCompile(`kms_(?:plugin|canary)_[a-z_]+`)
	label := regexp.MustCompile(`(\w+)(?:=~?|!=)"`)
	for _, r := range f.Groups[0].Rules {
		names := metric.FindAllString(r.Expr, -1)
		if len(names) == 0 || r.Annotations["summary"] == "" || r.Annotations["action"] == "" || r.Labels["severity"] == "" {
			t.Errorf("%s: metrics %v, %+v", r.Alert, names, r)
		}
		for _, name := range names {
			base := strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")
			row := regexp.MustCompile("(?m)^\\| `" + base + "` \\| (\\w+) \\| ?([^|]*?) ?\\|").FindSubmatch(doc)
			if row == nil {
				t.Errorf("%s: docs/metrics.md has no %s", r.Alert, base)
				continue
			}
			for _, l := range label.FindAllStringSubmatch(r.Expr, -1) {
				if !strings.Contains(", "+string(row[2])+",", ", "+l[1]+",") {
					t.Errorf("%s: %s has no label %s", r.Alert, base, l[1])
				}
			}
			if base != name && string(row[1]) != "histogram" {
				t.Errorf("%s: %s is no histogram", r.Alert, base)
			}
		}
	}
}

// Every command block of a README is a shell script, and names only files that are
// made or a program of this project.
func TestReadme(t *testing.T) {
	for name, p := range cases() {
		all := files(t, p)
		readme := string(data(t, all, "README.md"))
		paths := map[string]bool{}
		for _, f := range all {
			paths[f.Path] = true
			if f.Path != "README.md" && !strings.Contains(readme, filepath.Base(f.Path)) && !strings.Contains(readme, "`"+filepath.Ext(f.Path)+"`") && !strings.Contains(readme, ", `"+filepath.Ext(f.Path)) {
				t.Errorf("%s: README.md does not name %s", name, f.Path)
			}
		}
		for _, used := range regexp.MustCompile(`(?:^|[\s/=])((?:kms-plugin|encryption|kubeadm|aws)/[a-z0-9+.-]+\.(?:ya?ml|conf|json|service|socket))`).FindAllStringSubmatch(readme, -1) {
			if !paths[used[1]] && !strings.Contains(used[0], "/kms-plugin/config.yaml") && !strings.Contains(used[0], "/encryption/") {
				t.Errorf("%s: README.md uses %s, which is not made", name, used[1])
			}
		}
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(readme, -1) {
			sh := exec.CommandContext(t.Context(), "bash", "-n")
			sh.Stdin = strings.NewReader(block[1])
			if out, err := sh.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s\n%s", name, err, out, block[1])
			}
		}
		if strings.Contains(readme, "<no value>") || strings.Contains(readme, "\n\n\n") {
			t.Errorf("%s: README.md is not clean:\n%s", name, readme)
		}
	}
}
