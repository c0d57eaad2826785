package bootstrap

import (
	"bytes"
	"errors"
	"io"
	"path"
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

// Arg is a flag of kube-apiserver, without dashes.
type Arg struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// Mount is a directory of the node inside kube-apiserver's pod. Directories, not
// files: a mounted file stays the old one when a new one is renamed over it. A
// socket can be dialled through a read-only mount.
type Mount struct {
	Name      string `yaml:"name"`
	HostPath  string `yaml:"hostPath"`
	MountPath string `yaml:"mountPath"`
	ReadOnly  bool   `yaml:"readOnly"`
	PathType  string `yaml:"pathType"`
}

// Args are the flags that kube-apiserver needs besides those it has.
func (p Params) Args() []Arg {
	reload := Arg{"encryption-provider-config-automatic-reload", "true"}
	if p.From != nil {
		return []Arg{reload} // the other flag is there: that file is changed
	}
	return []Arg{{"encryption-provider-config", p.EncryptionPath}, reload}
}

// Mounts are the directories that kube-apiserver's pod needs besides those it has.
func (p Params) Mounts() []Mount {
	socket := Mount{"kms-plugin-socket", SocketDir, SocketDir, true, "DirectoryOrCreate"}
	if p.Run == Systemd {
		socket.PathType = "Directory" // the socket unit made it, before the kubelet
	}
	if p.From != nil {
		return []Mount{socket}
	}
	dir := path.Dir(p.EncryptionPath)
	return []Mount{{"encryption-config", dir, dir, true, "Directory"}, socket}
}

// apiserverFiles are what changes kube-apiserver.
func apiserverFiles(p Params) ([]File, error) {
	if p.Layout == Generic {
		return []File{text(p, "kube-apiserver.flags", 0o644, "kube-apiserver.flags")}, nil
	}
	patch := text(p, "kubeadm/kube-apiserver+json.yaml", 0o644, "kube-apiserver+json.yaml")
	switch {
	case p.KubeadmConfig != nil:
		merged, err := mergeKubeadm(p)
		// InitConfiguration may hold bootstrap tokens.
		return []File{{Path: kubeadmFile, Mode: 0o600, Data: merged, Secret: true}, patch}, err
	case p.Existing: // what is new alone would wipe out the cluster's own
		return []File{patch}, nil
	}
	return []File{text(p, kubeadmFile, 0o644, "cluster-configuration.yaml"), patch}, nil
}

const kubeadmFile = "kubeadm/cluster-configuration.yaml"

const kubeadmRemedy = "give what this prints: kubectl -n kube-system get configmap kubeadm-config -o jsonpath='{.data.ClusterConfiguration}'"

// mergeKubeadm puts our flags and mounts into a file that kubeadm takes.
func mergeKubeadm(p Params) ([]byte, error) {
	var docs []*yaml.Node
	var cluster *yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(p.KubeadmConfig))
	for {
		var doc yaml.Node
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, wrong("kubeadm-config", kubeadmRemedy, "cannot be used: %s", firstLine(err))
		}
		if err := plain(&doc); err != nil {
			return nil, wrong("kubeadm-config", "write the values out", "cannot be used: %v", err)
		}
		root := doc.Content[0]
		docs = append(docs, root)
		if kind := at(root, "kind"); kind != nil && kind.Value == "ClusterConfiguration" {
			if cluster != nil {
				return nil, wrong("kubeadm-config", kubeadmRemedy, "holds ClusterConfiguration twice")
			}
			cluster = root
		}
	}
	if cluster == nil {
		return nil, wrong("kubeadm-config", kubeadmRemedy, "holds no ClusterConfiguration of kubeadm")
	}
	apiVersion := at(cluster, "apiVersion")
	if apiVersion == nil || !strings.HasPrefix(apiVersion.Value, "kubeadm.k8s.io/") || apiVersion.Value == "kubeadm.k8s.io/v1beta3" || apiVersion.Value == "kubeadm.k8s.io/v1beta2" {
		return nil, wrong("kubeadm-config", "bring it up to date first: kubeadm config migrate --old-config FILE --new-config NEW", "is not of kubeadm.k8s.io/v1beta4 or later")
	}
	if err := mergeAPIServer(p, cluster); err != nil {
		return nil, err
	}
	return encode(docs...), nil
}

func mergeAPIServer(p Params, cluster *yaml.Node) error {
	server, err := ensure(cluster, "apiServer", yaml.MappingNode)
	if err != nil {
		return err
	}
	args, err := ensure(server, "extraArgs", yaml.SequenceNode)
	if err != nil {
		return err
	}
	for _, a := range p.Args() {
		if err := put(args, a.Name, "value", a.Value, a); err != nil {
			return err
		}
	}
	mounts, err := ensure(server, "extraVolumes", yaml.SequenceNode)
	if err != nil {
		return err
	}
	for _, m := range p.Mounts() {
		if err := put(mounts, m.Name, "hostPath", m.HostPath, m); err != nil {
			return err
		}
	}
	return nil
}

// ensure is the value below a name, made empty if it is not there.
func ensure(n *yaml.Node, name string, kind yaml.Kind) (*yaml.Node, error) {
	v := at(n, name)
	if v == nil {
		v = &yaml.Node{Kind: kind}
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name}, v)
	}
	if v.Kind == yaml.ScalarNode && v.Tag == "!!null" || len(v.Content) == 0 {
		*v = yaml.Node{Kind: kind} // also {} and [], which print on one line
	}
	if v.Kind != kind {
		return nil, wrong("kubeadm-config", kubeadmRemedy, "has %s of the wrong type in line %d", name, v.Line)
	}
	return v, nil
}

// put adds an item to a list of named items, unless it is there.
func put(list *yaml.Node, name, field, value string, item any) error {
	for _, have := range list.Content {
		if n := at(have, "name"); n == nil || n.Value != name {
			continue
		}
		if v := at(have, field); v == nil || v.Value != value {
			return wrong("kubeadm-config", "give --from with the EncryptionConfiguration in force, or take that entry out first", "has %q already, with another %s", name, field)
		}
		return nil
	}
	var n yaml.Node
	if err := n.Encode(item); err != nil {
		return err // cannot happen: plain fields
	}
	list.Style = 0
	list.Content = append(list.Content, &n)
	return nil
}
