package bootstrap_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kms-plugin.io/internal/bootstrap"
)

var (
	named = regexp.MustCompile(`(?m)^<!-- run: ([a-z-]+) -->\n(.*)\n`)
	block = regexp.MustCompile("(?ms)^```sh\n(.*?)^```")
	link  = regexp.MustCompile(`\]\(([a-z0-9./-]+\.md)\)`)
)

// What a test or a person runs from docs/install is a shell script, each block has
// a name of its own, and no page points nowhere.
func TestInstallDocs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/install/*.md")
	if err != nil || len(pages) < 10 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		data, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		text, seen := string(data), map[string]bool{}
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			if m[2] != "```sh" || seen[m[1]] {
				t.Errorf("%s: %q is followed by %q, or stands twice", page, m[1], m[2])
			}
			seen[m[1]] = true
		}
		if n := strings.Count(text, "<!-- run:"); n != len(seen) && filepath.Base(page) != "README.md" {
			t.Errorf("%s: %d names, %d of them before a block", page, n, len(seen))
		}
		for _, m := range block.FindAllStringSubmatch(text, -1) {
			sh := exec.CommandContext(t.Context(), "bash", "-n")
			sh.Stdin = strings.NewReader(m[1])
			if out, err := sh.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s\n%s", page, err, out, m[1])
			}
		}
		for section := range strings.SplitSeq(text, "\n## ") {
			if unnamed := strings.Count(section, "```sh\n") - len(named.FindAllString(section, -1)); unnamed > 0 && !strings.Contains(section, "Not run by any test") && !strings.Contains(text, "Not run here") {
				t.Errorf("%s: %d blocks have no name, and nothing says that no test runs them:\n%s", page, unnamed, section)
			}
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
		if run := strings.Contains(text, "Not run here"); run && len(seen) > 0 {
			t.Errorf("%s says that it was not run, and has blocks to run", page)
		}
	}
}

// Where one page repeats a step, it does what the README of kmsctl init does.
func TestInstallDocsAgree(t *testing.T) {
	p := bootstrap.Params{ClusterID: "prod-eu-1", KeyARN: arn, NodeRole: role}
	readme := string(data(t, files(t, p), "README.md"))
	if pod := string(data(t, files(t, p), "kms-plugin/kms-plugin.yaml")); !strings.Contains(pod, "drop: [ALL], add: [IPC_LOCK]") {
		t.Errorf("the pages say which capability it has; the pod is\n%s", pod)
	}
	for page, lines := range map[string][]string{
		"kubeadm-new.md": {"ctr -n k8s.io images import kms-plugin-image.tar", "kubeadm init --config kubeadm/cluster-configuration.yaml"},
		"nodes.md": {"install -m 0644 -D kms-plugin/tmpfiles.conf /etc/tmpfiles.d/kms-plugin.conf", "install -m 0600 kms-plugin/config.yaml /etc/kms-plugin/config.yaml",
			"install -m 0600 encryption/2-write.yaml /etc/kubernetes/encryption/config.yaml"},
		"README.md":  {"no capability but IPC_LOCK"},
		"upgrade.md": {"mv /etc/kubernetes/.kms-plugin.yaml /etc/kubernetes/manifests/kms-plugin.yaml"},
		"removal.md": {"mv /etc/kubernetes/encryption/config.yaml.new /etc/kubernetes/encryption/config.yaml"},
	} {
		text, err := os.ReadFile(filepath.Join("../../docs/install", page))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			if !strings.Contains(string(text), l) || !strings.Contains(readme, l) {
				t.Errorf("%s and the README that is made do not both have %q", page, l)
			}
		}
	}
}
