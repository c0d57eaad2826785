package doctor

import (
	"os"

	"kms-plugin.io/internal/harden"
	"kms-plugin.io/internal/preflight"
)

// resolver: under the confinement of files /etc/resolv.conf is the file that was there at
// the start. A link is followed, and a mount cannot be replaced.
func resolver(path string, readable []string) preflight.Result {
	if _, err := os.Lstat(path); err != nil {
		return preflight.Skip("%v", err)
	}
	if harden.Loses(path, readable) {
		return preflight.Warn("leave it to systemd-resolved or resolvconf, which make it a link; else restart kms-plugin after each change; see docs/hardening.md",
			"%s is no link: if it is replaced by renaming, kms-plugin goes on without it, and names of the KMS do not resolve", path)
	}
	return preflight.Pass("%s is a link or a mount, or its directory opens: a change of it is followed", path)
}
