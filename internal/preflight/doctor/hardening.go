package doctor

import (
	"context"
	"os"
	"slices"
	"strings"

	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/internal/status"
)

// hardening lists what the running daemon says it has denied itself.
func (d *doctor) hardening(ctx context.Context) preflight.Result {
	if d.config.ListenAddress == "" {
		return preflight.Skip("listenAddress is empty: look for the line \"hardening\" in the log of the plugin")
	}
	p, err := status.Scrape(ctx, d.config.ListenAddress)
	switch {
	case err != nil:
		return preflight.Skip("no plugin answers at listenAddress %s", d.config.ListenAddress)
	case len(p.Hardening) == 0:
		return preflight.Warn("upgrade kms-plugin", "kms-plugin %s has no hardening of its own", p.Version)
	}
	var all, lacking []string
	for measure, state := range p.Hardening {
		all = append(all, measure+" "+state)
		if state != "enforced" {
			lacking = append(lacking, measure)
		}
	}
	slices.Sort(all)
	slices.Sort(lacking)
	said := strings.Join(all, ", ")
	if len(lacking) > 0 {
		return preflight.Warn("the line \"hardening\" in the log of the plugin says why for "+strings.Join(lacking, ", ")+"; see docs/hardening.md", "%s", said)
	}
	return preflight.Pass("%s", said)
}

// swap: local KEKs are in memory only, as long as memory is not on a disk.
func swap(file string) preflight.Result {
	data, err := os.ReadFile(file)
	if err != nil {
		return preflight.Skip("%v", err)
	}
	if lines := strings.Split(strings.TrimSpace(string(data)), "\n"); len(lines) > 1 {
		return preflight.Warn("swapoff -a, or encrypt the swap space with a key made at boot", "swap is on (%s): local KEKs could be written to a disk", strings.Fields(lines[1])[0])
	}
	return preflight.Pass("swap is off")
}
