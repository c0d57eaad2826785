package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// archiveName is an OCI layout in a tar: `ctr images import` and others take it.
const archiveName = "kms-plugin-image.tar"

// build makes the archive and the lists of parts, and gives the digest of the index.
func build(ctx context.Context, o options) (v1.Hash, error) {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return v1.Hash{}, err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range o.platforms {
		p, err := compile(ctx, o, arch)
		if err != nil {
			return v1.Hash{}, err
		}
		parts, err := sbom(o, p)
		if err != nil {
			return v1.Hash{}, err
		}
		img, err := image(o, p, parts)
		if err != nil {
			return v1.Hash{}, fmt.Errorf("image for %s: %w", arch, err)
		}
		if err := replace(filepath.Join(o.out, "kms-plugin-"+arch+".cdx.json"), parts); err != nil {
			return v1.Hash{}, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img,
			Descriptor: v1.Descriptor{MediaType: types.OCIManifestSchema1, Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	index = mutate.Annotations(index, labels(o)).(v1.ImageIndex)
	digest, err := index.Digest()
	if err != nil {
		return v1.Hash{}, err
	}
	data, err := ociArchive(o, index)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("write the archive: %w", err)
	}
	return digest, replace(filepath.Join(o.out, archiveName), data)
}

// image is one layer over nothing.
func image(o options, p program, parts []byte) (v1.Image, error) {
	data, err := archive(rootfs(p, parts), o.created)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{Layer: layer, MediaType: types.OCILayer,
		History: v1.History{Created: v1.Time{Time: o.created}, CreatedBy: "kms-plugin.io/build/image"}})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Created = v1.Time{Time: o.created}
	config.OS, config.Architecture = "linux", p.arch
	config.Config = v1.Config{
		Entrypoint: []string{"/kms-plugin"},
		User:       fmt.Sprintf("%d:%[1]d", uid),
		WorkingDir: "/",
		Labels:     labels(o),
	}
	img, err = mutate.ConfigFile(img, config)
	if err != nil {
		return nil, err
	}
	return mutate.Annotations(img, labels(o)).(v1.Image), nil
}

// labels are those of the OCI image specification (annotations.md).
func labels(o options) map[string]string {
	const name = "org.opencontainers.image."
	return map[string]string{
		name + "title":       "kms-plugin",
		name + "description": "KMS v2 plugin of kube-apiserver: encrypts the DEK seeds of etcd under a key in a KMS",
		name + "licenses":    "Apache-2.0",
		name + "version":     o.version,
		name + "revision":    o.revision,
		name + "created":     o.created.Format("2006-01-02T15:04:05Z"),
	}
}

// ociArchive is the layout with the index under its name. containerd takes the name
// from its own annotation, others the tag from that of the specification.
func ociArchive(o options, index v1.ImageIndex) ([]byte, error) {
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return nil, err
	}
	if err := l.AppendIndex(index, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          o.ref,
		"org.opencontainers.image.ref.name": o.ref[strings.LastIndex(o.ref, ":")+1:],
	})); err != nil {
		return nil, err
	}
	var files []file
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files = append(files, file{strings.TrimPrefix(path, dir+"/"), 0o644, data}) // WalkDir sorts
		return err
	}); err != nil {
		return nil, err
	}
	return archive(files, o.created)
}

// replace writes a file whole or not at all.
func replace(path string, data []byte) error {
	temp := path + ".new"
	if err := errors.Join(os.WriteFile(temp, data, 0o644), os.Rename(temp, path)); err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	return nil
}
