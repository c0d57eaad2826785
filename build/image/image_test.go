package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"debug/elf"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// fresh gives each build a Go cache of its own: nothing is taken over from the
// other. It takes minutes.
var fresh = flag.Bool("fresh", false, "build twice from nothing")

// source is a copy of what the program is built from, in a folder of its own.
func source(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"cmd", "internal", "pkg"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(filepath.Join("../..", name))); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func made(t *testing.T, platforms string) (digest, out string) {
	t.Helper()
	out = t.TempDir()
	o := options{source: source(t), out: out, ref: "a.example/b:v1", version: "v1.2.3", revision: "abc", created: time.Unix(1700000000, 0).UTC(), platforms: strings.Split(platforms, ",")}
	if *fresh {
		o.goCache = t.TempDir()
	}
	h, err := build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return h.String(), out
}

// The same source in another folder gives the same bytes.
func TestReproducible(t *testing.T) {
	t.Setenv("GOFLAGS", "-mod=mod") // must not matter
	first, a := made(t, "amd64,arm64")
	t.Setenv("GOFLAGS", "")
	t.Setenv("GOAMD64", "v3")
	t.Setenv("CGO_ENABLED", "1")
	second, b := made(t, "amd64,arm64")
	if first != second {
		t.Errorf("digests %s and %s", first, second)
	}
	entries, err := os.ReadDir(a)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		x, err := os.ReadFile(filepath.Join(a, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if y, err := os.ReadFile(filepath.Join(b, e.Name())); err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s differs: %v", e.Name(), err)
		}
	}
	index := unpack(t, filepath.Join(a, archiveName))
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for i, arch := range []string{"amd64", "arm64"} {
		d := manifest.Manifests[i]
		if d.Platform == nil || d.Platform.Architecture != arch || d.Platform.OS != "linux" {
			t.Errorf("manifest %d is for %v, want %s", i, d.Platform, arch)
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, img, arch)
	}
}

// unpack reads the archive as an engine does.
func unpack(t *testing.T, path string) v1.ImageIndex {
	t.Helper()
	dir := t.TempDir()
	for _, f := range untar(t, path) {
		at := filepath.Join(dir, f.path)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, f.data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	top, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := top.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Annotations["io.containerd.image.name"] != "a.example/b:v1" || m.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v1" {
		t.Fatalf("%v, %+v", err, m)
	}
	index, err := top.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func untar(t *testing.T, path string) []file {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return entries(t, f)
}

func entries(t *testing.T, r io.Reader) (out []file) {
	t.Helper()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 1700000000 || h.Mode&0o022 != 0 {
			t.Errorf("%s: %+v", h.Name, h)
		}
		if h.Typeflag == tar.TypeReg {
			data, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, file{h.Name, h.Mode, data})
		}
	}
}

func checkImage(t *testing.T, img v1.Image, arch string) {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Config.User != "65532:65532" || !slices.Equal(c.Config.Entrypoint, []string{"/kms-plugin"}) || c.Architecture != arch || c.OS != "linux" ||
		c.Config.Labels["org.opencontainers.image.version"] != "v1.2.3" || c.Config.Labels["org.opencontainers.image.revision"] != "abc" ||
		c.Config.Labels["org.opencontainers.image.created"] != "2023-11-14T22:13:20Z" || len(c.Config.Env) != 0 {
		t.Errorf("%s: %+v", arch, c.Config)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%v, %v", layers, err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var names []string
	for _, f := range entries(t, r) {
		names = append(names, f.path)
		switch f.path {
		case "kms-plugin":
			checkProgram(t, f, arch)
		case "sbom.cdx.json":
			checkParts(t, f.data, arch)
		}
	}
	if want := []string{"etc/group", "etc/passwd", "etc/ssl/certs/ca-certificates.crt", "kms-plugin", "sbom.cdx.json"}; !slices.Equal(names, want) {
		t.Errorf("%s holds %q, want %q", arch, names, want)
	}
}

func checkProgram(t *testing.T, f file, arch string) {
	t.Helper()
	e, err := elf.NewFile(bytes.NewReader(f.data))
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]; e.Machine != want || f.mode != 0o755 {
		t.Errorf("%s: machine %s, mode %#o", arch, e.Machine, f.mode)
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("%s is not static: %s", arch, p.Type)
		}
	}
	if !bytes.Contains(f.data, []byte("v1.2.3")) {
		t.Errorf("%s does not say its version", arch)
	}
	if bytes.Contains(f.data, []byte(os.TempDir()+"/Test")) {
		t.Errorf("%s holds the folder it was built in", arch)
	}
}

func checkParts(t *testing.T, data []byte, arch string) {
	t.Helper()
	var bom cyclonedx.BOM
	if err := json.Unmarshal(data, &bom); err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, c := range *bom.Components {
		have[c.Name] = c.Version != "" && c.Version != "unknown"
	}
	for _, want := range []string{"std", "github.com/aws/aws-sdk-go-v2", "github.com/tink-crypto/tink-go/v2", "google.golang.org/grpc"} {
		if !have[want] {
			t.Errorf("%s: the list of parts lacks %s", arch, want)
		}
	}
	if have["k8s.io/client-go"] || have["go.etcd.io/bbolt"] {
		t.Errorf("%s: the list of parts has what is not linked", arch)
	}
	if bom.Metadata.Component.Version != "v1.2.3" || len(*bom.Metadata.Component.Hashes) != 1 {
		t.Errorf("%s: %+v", arch, bom.Metadata.Component)
	}
}

func TestCertificates(t *testing.T) {
	pem := certificates()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) || bytes.Count(pem, []byte("BEGIN CERTIFICATE")) < 50 {
		t.Errorf("%d bytes of certificates", len(pem))
	}
	if !bytes.Equal(pem, certificates()) {
		t.Error("two lists differ")
	}
}

func TestDescribe(t *testing.T) {
	none := options{source: t.TempDir(), ref: "a/b:c"}
	if err := none.describe(t.Context(), ""); err != nil || none.version != "devel-unknown" || none.revision != "unknown" || none.created.Unix() != 0 {
		t.Errorf("without git: %+v, %v", none, err)
	}
	for name, tc := range map[string]struct{ ref, epoch, want string }{
		"time": {"a/b:c", "yesterday", `the time "yesterday" is not in seconds`},
		"past": {"a/b:c", "-1", "is not in seconds"},
		"tag":  {"a/b", "0", "must hold a name and a tag"},
		"port": {"a:5000/b", "0", "must hold a name and a tag"},
	} {
		o := options{source: none.source, ref: tc.ref}
		if err := o.describe(t.Context(), tc.epoch); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestBuildFails(t *testing.T) {
	o := options{source: t.TempDir(), out: t.TempDir(), ref: "a/b:c", platforms: []string{"amd64"}}
	if _, err := build(t.Context(), o); err == nil || !strings.Contains(err.Error(), "build for amd64: ") {
		t.Errorf("build = %v", err)
	}
	if entries, err := os.ReadDir(o.out); err != nil || len(entries) != 0 {
		t.Errorf("it left %v, %v", entries, err)
	}
}
