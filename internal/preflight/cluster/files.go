package cluster

import (
	"slices"

	"kms-plugin.io/internal/preflight"
)

// ofFiles are the checks that need nothing but the two configurations.
var ofFiles = []string{"plugin-config", "encryption-config", "kms-version", "kms-endpoint", "kms-timeout", "kms-cachesize", "provider-order", "plain-resources"}

// OfFiles is the short form: the checks that can be made anywhere, before the files
// are on any node.
func OfFiles(pluginConfig, encryption string) []preflight.Check {
	return slices.DeleteFunc(Checks(Options{PluginConfig: pluginConfig, Encryption: encryption}),
		func(c preflight.Check) bool { return !slices.Contains(ofFiles, c.Name) })
}
