package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// programs are those of the host that a node uses, and the Debian package of each.
var programs = map[string]string{
	"containerd": "containerd",
	"runc":       "runc",
	"ip":         "iproute2",
	"unshare":    "util-linux",
	"nsenter":    "util-linux",
	"mount":      "mount",
}

// InstallPackages installs with apt what is missing on the host. No service is
// started.
func InstallPackages(ctx context.Context, progress io.Writer) error {
	var missing []string
	for program, pkg := range programs {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("missing on this machine: %s, and there is no apt-get to install them", strings.Join(missing, ", "))
	}
	fmt.Fprintf(progress, "installing %s\n", strings.Join(missing, " "))
	for _, args := range [][]string{{"update"}, append([]string{"install", "-y", "--no-install-recommends"}, missing...)} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		// RUNLEVEL=1: invoke-rc.d starts nothing then.
		cmd.Env = append(cmd.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			return errors.Join(fmt.Errorf("apt-get %s: %w", args[0], err), errors.New(string(out)))
		}
	}
	return nil
}
