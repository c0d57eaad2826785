package node

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"kms-plugin.io/test/controlplane"
)

// Repository is that of the images that kubeadm and the tests name.
const Repository = "kms-plugin.test"

const kubeadmTime = 10 * time.Minute

// KubernetesImages are what `kubeadm init` starts.
func KubernetesImages(b controlplane.Bin, pause string) []Image {
	tag := func(name, version string) string { return Repository + "/" + name + ":" + version }
	return []Image{
		{tag("kube-apiserver", controlplane.Version), []string{b.APIServer}},
		{tag("kube-controller-manager", controlplane.Version), []string{b.ControllerManager}},
		{tag("kube-scheduler", controlplane.Version), []string{b.Scheduler}},
		{tag("etcd", controlplane.EtcdVersion), []string{b.Etcd, b.Etcdctl}},
		{tag("pause", "1"), []string{pause}},
	}
}

// Options say what kubeadm's configuration has beside the machine's own.
type Options struct {
	APIServerArgs map[string]string
	// APIServerMounts are directories of the node that kube-apiserver sees.
	APIServerMounts []string
}

// slow is what a busy machine needs: no test is about these times.
const slow = "timeouts: {controlPlaneComponentHealthCheck: 10m, kubeletHealthCheck: 10m, kubernetesAPICall: 5m, etcdAPICall: 5m, tlsBootstrap: 10m, discovery: 10m}\n"

// KubeadmPath is where the machine's kubeadm configuration is.
const KubeadmPath = "/etc/kubernetes/kubeadm.yaml"

// Configure writes the configuration that its operator would give to `kubeadm init`
// on this machine.
func (n *Node) Configure(o Options) error {
	return n.Write(KubeadmPath, n.initConfiguration(o))
}

// Init runs `kubeadm init`.
func (n *Node) Init(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, kubeadmTime)
	defer cancel()
	_, err := n.Run(ctx, "kubeadm", "init", "--config", KubeadmPath)
	return err
}

// Join makes this machine a further control plane of the cluster of another.
func (n *Node) Join(ctx context.Context, first *Node) error {
	ctx, cancel := context.WithTimeout(ctx, kubeadmTime)
	defer cancel()
	certs, err := first.Run(ctx, "kubeadm", "init", "phase", "upload-certs", "--upload-certs")
	if err != nil {
		return err
	}
	join, err := first.Run(ctx, "kubeadm", "token", "create", "--print-join-command")
	if err != nil {
		return err
	}
	if err := n.Write(KubeadmPath, n.joinConfiguration(first, lastWord(certs), word(join, "--token"), word(join, "--discovery-token-ca-cert-hash"))); err != nil {
		return err
	}
	_, err = n.Run(ctx, "kubeadm", "join", "--config", KubeadmPath)
	return err
}

// Client is the administrator's, at this node's own API server.
func (n *Node) Client() (*controlplane.Client, error) {
	config, err := clientcmd.BuildConfigFromFlags("https://"+n.IP+":6443", n.Path("/etc/kubernetes/admin.conf"))
	if err != nil {
		return nil, err
	}
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, err
	}
	c := controlplane.NewClient(config.Host, &http.Client{Transport: transport, Timeout: time.Minute})
	return &c, nil
}

// registration: SystemVerification refuses cgroup v1.
func (n *Node) registration() string {
	return fmt.Sprintf(`nodeRegistration:
  name: %s
  criSocket: unix:///run/containerd/containerd.sock
  imagePullPolicy: Never
  ignorePreflightErrors: [SystemVerification]
  kubeletExtraArgs:
  - {name: node-ip, value: %s}
%s`, n.Name, n.IP, slow)
}

// initConfiguration: kube-proxy and CoreDNS, the addons, have no network here, and
// nobody needs them.
func (n *Node) initConfiguration(o Options) string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: %[1]s, bindPort: 6443}
skipPhases: [addon]
%[2]s---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %[3]s
imageRepository: %[4]s
controlPlaneEndpoint: %[1]s:6443
etcd:
  local:
    imageTag: %[5]s
    extraArgs:
    - {name: heartbeat-interval, value: "500"}
    - {name: election-timeout, value: "5000"}
apiServer:
`, n.IP, n.registration(), controlplane.Version, Repository, controlplane.EtcdVersion)
	b.WriteString(apiServer(o))
	b.WriteString(`---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
resolvConf: ""
evictionHard: {imagefs.available: "1%", nodefs.available: "1%", memory.available: 100Mi}
`)
	return b.String()
}

func apiServer(o Options) string {
	var b strings.Builder
	b.WriteString("  extraArgs:\n  - {name: v, value: \"1\"}\n")
	for name, value := range o.APIServerArgs {
		fmt.Fprintf(&b, "  - {name: %s, value: %q}\n", name, value)
	}
	if len(o.APIServerMounts) > 0 {
		b.WriteString("  extraVolumes:\n")
	}
	for i, dir := range o.APIServerMounts {
		fmt.Fprintf(&b, "  - {name: extra-%d, hostPath: %s, mountPath: %s, pathType: DirectoryOrCreate}\n", i, dir, dir)
	}
	return b.String()
}

func (n *Node) joinConfiguration(first *Node, certificateKey, token, caHash string) string {
	return fmt.Sprintf(`apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken: {apiServerEndpoint: "%s:6443", token: "%s", caCertHashes: ["%s"]}
controlPlane:
  localAPIEndpoint: {advertiseAddress: %s, bindPort: 6443}
  certificateKey: %s
%s`, first.IP, token, caHash, n.IP, certificateKey, n.registration())
}

func lastWord(s string) string {
	f := strings.Fields(s)
	if len(f) == 0 {
		return ""
	}
	return f[len(f)-1]
}

// word is the one after a flag.
func word(s, flag string) string {
	_, rest, _ := strings.Cut(s, flag+" ")
	return strings.Fields(rest + " ?")[0]
}
