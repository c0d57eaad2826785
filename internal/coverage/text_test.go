package coverage

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// The page shows for each resource how much is under which key, and of each key whether
// that is as it should be.
func TestPageNamesKeys(t *testing.T) {
	r := scan(t, sample(), Options{Encryption: encryption(secretsByOurs), Names: pluginConfig("")})
	var page bytes.Buffer
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`7 current (<a href="#key-1">key 1</a>), 5 older key (<a href="#key-2">key 2</a>), 1 other provider (<a href="#key-3">key 3</a>), 1 plain, 1 broken`,
		`<i class="older" title="5 older key, key 2" style="width:33.333`, `id="key-2"><h3>2. a (a:`, `<i class="others" style="width:5`, "8 under 1 DEK seed, written",
	} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("no %q in\n%s", want, page.String())
		}
	}
}

// What is in etcd cannot speak to the terminal or to the browser.
func TestHostileNames(t *testing.T) {
	s := &source{}
	s.add("/registry/secrets/ns/\x1b[31m<script>x", "k8s\x00x")
	s.add("/registry/secrets/ns/b", value("ou\x1brs<b>", "", "id\x1b]0;<script>alert(1)</script>", nil, "s"))
	r := scan(t, s, Options{Resources: []string{"secrets"}})
	var text, page bytes.Buffer
	if err := r.Print(&text, 80); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(text.String(), "\x1b\x07\r") || strings.Contains(page.String(), "\x1b") {
		t.Errorf("control characters come through:\n%q", text.String())
	}
	if strings.Contains(page.String(), "<script") || strings.Contains(page.String(), "rs<b>") {
		t.Error("markup comes through")
	}
}

func TestFitsTheTerminal(t *testing.T) {
	s := sample()
	s.add("/registry/"+strings.Repeat("very-long-", 6)+".example.com/"+strings.Repeat("things", 8)+"/ns/x", "{}")
	r := scan(t, s, Options{Encryption: encryption(secretsByOurs), Names: pluginConfig("")})
	var text bytes.Buffer
	if err := r.Print(&text, 80); err != nil {
		t.Fatal(err)
	}
	above, _, _ := strings.Cut(text.String(), "\n\nsecrets: ") // the names of objects are shown whole
	for l := range strings.Lines(above) {
		if n := len([]rune(l)); n > 81 && !strings.HasPrefix(l, "current") {
			t.Errorf("%d columns: %q", n, l)
		}
	}
	if !strings.Contains(text.String(), "8 of 16 objects are on the current key") {
		t.Errorf("no verdict in\n%s", text.String())
	}
}

func TestReportJSON(t *testing.T) {
	r := scan(t, sample(), Options{Encryption: encryption(secretsByOurs), Names: pluginConfig("")})
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"apiVersion":"kms-plugin.io/coverage/v1"`, `"mustBeEncrypted":true`, `"current":7`, `"revision":20`, `"keyIDHash":"sha256:`} {
		if !bytes.Contains(data, []byte(want)) {
			t.Errorf("no %s in %s", want, data)
		}
	}
}
