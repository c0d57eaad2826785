package node

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
)

// Image is one image with one layer: static programs in /usr/local/bin. Its
// entry point is the first.
type Image struct {
	Ref      string
	Programs []string // paths on this machine
}

// WriteImages writes a docker-archive of them, which `ctr images import` takes.
func WriteImages(file string, images ...Image) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	var manifest []entry
	for i, m := range images {
		layer, config := fmt.Sprintf("%d/layer.tar", i), fmt.Sprintf("%d.json", i)
		digest, err := m.addLayer(w, layer, filepath.Dir(file))
		if err != nil {
			return fmt.Errorf("image %s: %w", m.Ref, err)
		}
		if err := addJSON(w, config, m.config(digest)); err != nil {
			return err
		}
		manifest = append(manifest, entry{config, []string{m.Ref}, []string{layer}})
	}
	if err := addJSON(w, "manifest.json", manifest); err != nil {
		return err
	}
	return w.Close()
}

func (m Image) config(digest string) any {
	return map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/usr/local/bin"}, "Entrypoint": []string{"/usr/local/bin/" + path.Base(m.Programs[0])}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest}},
	}
}

// addLayer writes the layer to a file first: its size and digest come before it.
func (m Image) addLayer(w *tar.Writer, name, dir string) (digest string, err error) {
	t, err := os.CreateTemp(dir, "layer")
	if err != nil {
		return "", err
	}
	defer func() { t.Close(); os.Remove(t.Name()) }()
	h := sha256.New()
	l := tar.NewWriter(io.MultiWriter(t, h))
	for _, d := range []string{"etc/", "tmp/", "usr/", "usr/local/", "usr/local/bin/"} {
		if err := l.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}); err != nil {
			return "", err
		}
	}
	for _, p := range slices.Compact(m.Programs) {
		if err := addFile(l, "usr/local/bin/"+path.Base(p), p, 0o755); err != nil {
			return "", err
		}
	}
	if err := l.Close(); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), addFile(w, name, t.Name(), 0o644)
}

func addFile(w *tar.Writer, name, from string, mode int64) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	i, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: i.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

func addJSON(w *tar.Writer, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}
