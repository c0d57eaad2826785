package controlplane

import (
	"context"
	"path/filepath"
)

// Manager is one kube-controller-manager.
type Manager struct{ process }

// StartManager starts one that works StorageVersionMigrations off, with the garbage
// collector that they need, and nothing else.
func StartManager(_ context.Context, b Bin, dir, kubeconfig string) (*Manager, error) {
	m := &Manager{process{name: "manager", path: b.ControllerManager, log: logPath(dir, "manager"), env: plainEnv(), args: []string{
		"--kubeconfig=" + kubeconfig, "--secure-port=0", "--leader-elect=true", "--service-account-private-key-file=" + filepath.Join(dir, "sa.key"),
		"--controllers=garbage-collector-controller,storage-version-migrator-controller",
	}}}
	return m, m.start()
}
