//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// API servers that run different EncryptionConfigurations would undo a rotation. Their
// metrics show only that files differ; the files themselves are the proof that just the
// sockets do.
func TestDifferentEncryptionConfigurations(t *testing.T) {
	c := newCluster(t)
	p1, p2 := c.plugin("p1", ""), c.plugin("p2", "")
	a1, a2 := c.apiServer("api1", p1), c.apiServer("api2", p2)
	c.create(a1, "s")
	file := func(n int) string { return filepath.Join(c.dir, fmt.Sprintf("api%d-encryption.yaml", n)) }
	flags := append(c.kubeFlags(a1, a2), c.etcdFlags()...)
	run := func(code int, encryption string) string {
		t.Helper()
		out, log := c.kmsctl(code, append([]string{"rotate", "run", "-n", "default", "--wait", "1s", "--encryption-config", encryption}, flags...)...)
		return string(out) + log
	}
	const differ = "the API servers run different EncryptionConfigurations"
	if text := run(1, file(1)); !strings.Contains(text, differ) || !strings.Contains(text, "nothing was changed yet") {
		t.Errorf("%s", text)
	}
	out, _ := c.kmsctl(3, append([]string{"rotate", "plan", "--encryption-config", file(1), "--plugin-config", filepath.Join(c.dir, "p1/config.yaml"), "--plugins", p1.HTTP() + "," + p2.HTTP()}, flags...)...)
	if !strings.Contains(string(out), differ) {
		t.Errorf("%s", out)
	}
	if text := run(0, file(1)+","+file(2)); !strings.Contains(text, "everything is under key_id "+c.keyID(p1)) {
		t.Errorf("%s", text)
	}
	data, err := os.ReadFile(file(2))
	if err == nil { // a file that is not what runs
		err = os.WriteFile(file(3), append(data, "# edited\n"...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if text := run(1, file(1)+","+file(3)); !strings.Contains(text, strings.TrimPrefix(a2.URL, "https://")+" runs an EncryptionConfiguration that is none of those given: sha256:") {
		t.Errorf("%s", text)
	}
}
