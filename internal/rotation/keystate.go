package rotation

import (
	"fmt"
	"strings"
	"time"

	"kms-plugin.io/internal/fleet"
	"kms-plugin.io/internal/status"
	"kms-plugin.io/pkg/keys"
)

// ill is what a plugin knows against its use of a key; "" is nothing. A key that is
// only read is not asked to wrap.
func ill(k status.Key) string {
	switch {
	case k.Closed != nil:
		return fmt.Sprintf("key %q opens nothing there since %s (%s)", k.Name, k.Closed.Since.UTC().Format(time.RFC3339), k.Closed.Class)
	case k.Unwrap == "degraded" || k.Unwrap == "closed":
		return fmt.Sprintf("key %q is %s for unwrap there", k.Name, k.Unwrap)
	case k.Role == string(keys.RoleWrite) && (k.Wrap == "degraded" || k.Wrap == "closed"):
		return fmt.Sprintf("key %q is %s for wrap there", k.Name, k.Wrap)
	}
	return ""
}

// illKeys are those that a plugin needs still.
func illKeys(p fleet.Plugin) string {
	var out []string
	for _, k := range p.Keys {
		if text := ill(k); text != "" && k.Role != string(keys.RoleRetired) {
			out = append(out, text)
		}
	}
	return strings.Join(out, ", ")
}

// untried: a key with role read is not used before something is stored under it, and a
// plugin that has it in its configuration may yet lack the right to it.
func (s steps) untried() (out []string) {
	for _, p := range s.Fleet.Plugins {
		if p.Plugin == nil {
			continue
		}
		for _, k := range p.Keys {
			if k.Name == s.Target && k.Unwrap == "unknown" {
				out = append(out, fmt.Sprintf("plugin %s has not tried key %q yet: kms-plugin doctor on that node does, by a dry run", p.Address, k.Name))
			}
		}
	}
	return out
}
