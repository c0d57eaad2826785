package node

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// An image's layer is what its configuration says it is, and holds the programs.
func TestWriteImages(t *testing.T) {
	dir := t.TempDir()
	program, file := filepath.Join(dir, "prog"), filepath.Join(dir, "images.tar")
	if err := os.WriteFile(program, []byte("a program"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteImages(file, Image{"a/b:1", []string{program}}, Image{"a/b:2", []string{program}}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parts := untar(t, f)
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(parts["manifest.json"], &manifest); err != nil || len(manifest) != 2 || manifest[1].RepoTags[0] != "a/b:2" {
		t.Fatalf("%s: %v", parts["manifest.json"], err)
	}
	for _, m := range manifest {
		var config struct {
			Config struct{ Entrypoint []string }
			Rootfs struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		if err := json.Unmarshal(parts[m.Config], &config); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(parts[m.Layers[0]])
		if got := config.Rootfs.DiffIDs[0]; got != "sha256:"+hex.EncodeToString(sum[:]) {
			t.Errorf("%s: diff_id %s is not that of the layer", m.RepoTags, got)
		}
		if got := config.Config.Entrypoint; len(got) != 1 || got[0] != "/usr/local/bin/prog" {
			t.Errorf("%s: entry point %q", m.RepoTags, got)
		}
	}
	layer, err := os.CreateTemp(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer layer.Close()
	if _, err := layer.Write(parts[manifest[0].Layers[0]]); err != nil {
		t.Fatal(err)
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got := string(untar(t, layer)["usr/local/bin/prog"]); got != "a program" {
		t.Errorf("the program is %q", got)
	}
}

func untar(t *testing.T, f io.Reader) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Name] = data
	}
}

// What kubeadm prints for people is where the join comes from.
func TestWords(t *testing.T) {
	const join = "kubeadm join 10.99.0.10:6443 --token abc.def --discovery-token-ca-cert-hash sha256:00 \n"
	if got := word(join, "--token"); got != "abc.def" {
		t.Errorf("token = %q", got)
	}
	if got := word(join, "--discovery-token-ca-cert-hash"); got != "sha256:00" {
		t.Errorf("hash = %q", got)
	}
	if got := word(join, "--bogus"); got != "?" {
		t.Errorf("bogus = %q", got)
	}
	if got := lastWord("[upload-certs] Using certificate key:\n00ff\n"); got != "00ff" {
		t.Errorf("key = %q", got)
	}
}
