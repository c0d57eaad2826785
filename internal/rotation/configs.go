package rotation

import (
	"fmt"
	"slices"

	"kms-plugin.io/internal/encryptionconfig"
	"kms-plugin.io/internal/fleet"
)

// unlike says how the EncryptionConfigurations of the API servers differ, and what to
// do: one that writes a resource in another way undoes the rotation. A hash tells only
// that files differ; where just the sockets do, the files of all are the proof. One that
// shows no hash is not compared.
func unlike(servers []fleet.Server, files []*encryptionconfig.Config) string {
	for _, f := range files[min(1, len(files)):] {
		if !f.Same(files[0]) {
			return "the EncryptionConfigurations given differ in more than the sockets: every API server must write every resource alike"
		}
	}
	first := ""
	for _, x := range servers {
		switch {
		case x.Config == "":
		case first == "":
			first = x.Config
		case x.Config != first && len(files) < 2:
			return "the API servers run different EncryptionConfigurations, by last_config_info of their metrics: make them one, or, if only sockets differ, give the files of all: --encryption-config A,B,…"
		}
	}
	for _, x := range servers {
		if len(files) > 1 && x.Config != "" && !slices.ContainsFunc(files, func(f *encryptionconfig.Config) bool { return f.Hash() == x.Config }) {
			return fmt.Sprintf("API server %s runs an EncryptionConfiguration that is none of those given: %s, as sha256sum prints it", x.Name, x.Config)
		}
	}
	return ""
}
