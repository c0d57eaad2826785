package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
)

// sbom lists what a program is made of, as CycloneDX: what the Go linker put into
// it, not what a go.mod says could be.
func sbom(o options, p program) ([]byte, error) {
	sum := sha256.Sum256(p.data)
	parts := []cyclonedx.Component{
		component("std", strings.TrimPrefix(p.info.GoVersion, "go"), ""),
		component(roots, rootsVersion(), ""),
	}
	for _, m := range p.info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		parts = append(parts, component(m.Path, m.Version, m.Sum))
	}
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{
		Timestamp: o.created.Format(time.RFC3339),
		Component: &cyclonedx.Component{
			BOMRef: "kms-plugin", Type: cyclonedx.ComponentTypeApplication, Name: "kms-plugin", Version: o.version,
			Hashes: &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}},
			Properties: &[]cyclonedx.Property{
				{Name: "kms-plugin:arch", Value: p.arch}, {Name: "kms-plugin:revision", Value: o.revision},
			},
		},
	}
	bom.Components = &parts
	var refs []string
	for _, c := range parts {
		refs = append(refs, c.BOMRef)
	}
	bom.Dependencies = &[]cyclonedx.Dependency{{Ref: "kms-plugin", Dependencies: &refs}}
	var b bytes.Buffer
	e := cyclonedx.NewBOMEncoder(&b, cyclonedx.BOMFileFormatJSON)
	e.SetPretty(true)
	if err := e.Encode(bom); err != nil {
		return nil, fmt.Errorf("write the list of parts: %w", err)
	}
	return b.Bytes(), nil
}

func component(path, version, sum string) cyclonedx.Component {
	purl := "pkg:golang/" + path + "@" + version
	c := cyclonedx.Component{BOMRef: purl, Type: cyclonedx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: purl}
	if sum != "" {
		c.Properties = &[]cyclonedx.Property{{Name: "go:sum", Value: sum}}
	}
	return c
}

// roots is the module that the root certificates come from.
const roots = "golang.org/x/crypto/x509roots/fallback"

// rootsVersion is the version that this program itself was built with.
func rootsVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == roots {
				return m.Version
			}
		}
	}
	return "unknown"
}
