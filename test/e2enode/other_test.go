//go:build e2enode

package e2enode

import (
	"testing"

	"kms-plugin.io/test/node"
)

const (
	otherImage     = node.Repository + "/otherkms:1"
	otherManifest  = "/etc/kubernetes/manifests/otherkms.yaml"
	otherSocketDir = "/run/otherkms"
	otherKey       = "/etc/kubernetes/otherkms.key"
)

const otherPod = `apiVersion: v1
kind: Pod
metadata: {name: otherkms, namespace: kube-system}
spec:
  hostNetwork: true
  priorityClassName: system-node-critical
  containers:
  - name: otherkms
    image: ` + otherImage + `
    imagePullPolicy: Never
    args: [` + otherSocketDir + `/socket.sock, ` + otherKey + `]
    volumeMounts:
    - {name: socket, mountPath: ` + otherSocketDir + `}
    - {name: key, mountPath: ` + otherKey + `, readOnly: true}
  volumes:
  - {name: socket, hostPath: {path: ` + otherSocketDir + `, type: DirectoryOrCreate}}
  - {name: key, hostPath: {path: ` + otherKey + `, type: File}}
`

// fromOtherKMS takes a cluster from another KMS v2 plugin to ours, and ends the
// other one.
func (c *cluster) fromOtherKMS(t *testing.T) {
	n := c.nodes[0]
	must(t, n.Import(t.Context(), archive("other")))
	must(t, n.Write(otherKey, "0123456789abcdef0123456789abcdef"))
	must(t, n.Write(otherManifest, otherPod))
	c.initEncryptedBy(t, "  - kms: {apiVersion: v2, name: otherkms, endpoint: \"unix://"+otherSocketDir+"/socket.sock\", timeout: 3s}\n", otherSocketDir)
	c.moveFrom(t)
	_, err := n.Run(t.Context(), "rm", otherManifest, otherKey)
	must(t, err)
	restart(t, n) // its API server begins without the other plugin
	c.ready(t, c.api, healTime)
	read(t, c.api, "old")
	create(t, c.api, "without-the-other")
}
