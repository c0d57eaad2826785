package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"kms-plugin.io/internal/preflight"
)

// The flags of kube-apiserver that matter here.
const (
	configFlag = "--encryption-provider-config"
	reloadFlag = "--encryption-provider-config-automatic-reload"
)

// manifest is the static pod of kube-apiserver, as far as it matters here.
type manifest struct {
	file      string
	container container
	volumes   map[string]hostPath
	user      *int64
}

type container struct {
	Name            string   `yaml:"name"`
	Command         []string `yaml:"command"`
	Args            []string `yaml:"args"`
	VolumeMounts    []mount  `yaml:"volumeMounts"`
	SecurityContext security `yaml:"securityContext"`
}

type mount struct {
	Name      string `yaml:"name"`
	MountPath string `yaml:"mountPath"`
	SubPath   string `yaml:"subPath"`
}

type hostPath struct {
	Path string `yaml:"path"`
	Type string `yaml:"type"`
}

type security struct {
	RunAsUser *int64 `yaml:"runAsUser"`
}

func loadManifest(file string) (*manifest, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var pod struct {
		Kind string `yaml:"kind"`
		Spec struct {
			Containers      []container `yaml:"containers"`
			SecurityContext security    `yaml:"securityContext"`
			Volumes         []struct {
				Name     string    `yaml:"name"`
				HostPath *hostPath `yaml:"hostPath"`
			} `yaml:"volumes"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(data, &pod); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	i := slices.IndexFunc(pod.Spec.Containers, func(c container) bool { return c.Name == "kube-apiserver" })
	if pod.Kind != "Pod" || i < 0 {
		return nil, fmt.Errorf("%s is not a pod with a container kube-apiserver", file)
	}
	m := &manifest{file: file, container: pod.Spec.Containers[i], volumes: map[string]hostPath{}, user: pod.Spec.SecurityContext.RunAsUser}
	if u := m.container.SecurityContext.RunAsUser; u != nil {
		m.user = u
	}
	for _, v := range pod.Spec.Volumes {
		if v.HostPath != nil {
			m.volumes[v.Name] = *v.HostPath
		}
	}
	return m, nil
}

// flag is the last value of a flag, "" if it is not given.
func (m *manifest) flag(name string) (value string) {
	all := slices.Concat(m.container.Command, m.container.Args)
	for i, a := range all {
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			value = v
		} else if a == name && i+1 < len(all) && !strings.HasPrefix(all[i+1], "-") {
			value = all[i+1]
		} else if a == name {
			value = "true"
		}
	}
	return value
}

// onHost finds the path on the node of a path in the container. mountPath is the
// mount that it lies in; ok is false if it lies in none of the host.
func (m *manifest) onHost(inside string) (host, mountPath string, ok bool) {
	inside = path.Clean(inside)
	var best mount
	for _, v := range m.container.VolumeMounts {
		at := path.Clean(v.MountPath)
		if (inside == at || strings.HasPrefix(inside, strings.TrimSuffix(at, "/")+"/")) && len(at) > len(best.MountPath) {
			best = mount{v.Name, at, v.SubPath}
		}
	}
	v, isHost := m.volumes[best.Name]
	if best.MountPath == "" || !isHost {
		return "", best.MountPath, false
	}
	return path.Join(v.Path, best.SubPath, strings.TrimPrefix(inside, best.MountPath)), best.MountPath, true
}

func (p *plane) checkManifest(context.Context) preflight.Result {
	switch {
	case p.o.Manifest == "":
		return preflight.Skip("no --manifest")
	case errors.Is(p.manifestErr, fs.ErrNotExist):
		return preflight.Skip("there is no %s: flags and mounts of kube-apiserver are not looked at (--manifest FILE)", p.o.Manifest)
	case p.manifestErr != nil:
		return preflight.Fail("--manifest FILE: the static pod of kube-apiserver", "%v", p.manifestErr)
	case p.manifest.flag(configFlag) == "":
		return preflight.Fail("add "+configFlag+"=FILE, and mount the file and the socket's directory", "kube-apiserver has no %s in %s: nothing is encrypted", configFlag, p.manifest.file)
	}
	return preflight.Pass("kube-apiserver has %s=%s", configFlag, p.manifest.flag(configFlag))
}

// encrypting is the manifest if it has the flag.
func (p *plane) encrypting() (*manifest, string) {
	if p.manifest == nil {
		return nil, "no static pod of kube-apiserver"
	}
	if p.manifest.flag(configFlag) == "" {
		return nil, "kube-apiserver has no " + configFlag
	}
	return p.manifest, ""
}

func (p *plane) configMount(context.Context) preflight.Result {
	m, why := p.encrypting()
	if m == nil {
		return preflight.Skip("%s", why)
	}
	inside := m.flag(configFlag)
	host, at, ok := m.onHost(inside)
	mountIt := fmt.Sprintf("mount the directory %s from the host: extraVolumes of kubeadm, or volumes and volumeMounts in %s", path.Dir(inside), m.file)
	switch {
	case !path.IsAbs(inside):
		return preflight.Fail("give the full path", "%s=%s is not an absolute path", configFlag, inside)
	case !ok:
		return preflight.Fail(mountIt, "%s is not mounted from the host: kube-apiserver will not find it", inside)
	case p.o.Encryption != "" && path.Clean(p.o.Encryption) != host:
		return preflight.Fail("look at the one it reads, or correct the flag or the mount", "kube-apiserver reads %s of this host, not %s", host, p.o.Encryption)
	}
	if _, err := os.Stat(host); err != nil {
		return preflight.Fail("write it, mode 0600, before kube-apiserver starts", "%s is mounted from %s, which cannot be read: %v", inside, host, err)
	}
	if at == path.Clean(inside) {
		return preflight.Warn(mountIt, "%s is mounted as a single file: a new version that is renamed into place is not seen until kube-apiserver restarts", inside)
	}
	return preflight.Pass("%s is %s of this host", inside, host)
}

func (p *plane) socketMount(context.Context) preflight.Result {
	m, why := p.encrypting()
	if m == nil || p.encryption == nil {
		return preflight.Skip("%s", firstOf(why, "no valid EncryptionConfiguration"))
	}
	var seen []string
	for _, k := range p.encryption.KMS() {
		inside, err := socketOf(k.Endpoint)
		if err != nil {
			continue // kms-endpoint says so
		}
		_, at, ok := m.onHost(inside)
		remedy := fmt.Sprintf("mount the directory %s from the host: extraVolumes of kubeadm, or volumes and volumeMounts in %s", path.Dir(inside), m.file)
		switch {
		case !ok:
			return preflight.Fail(remedy, "the socket directory %s of provider %q is not mounted into kube-apiserver: it will never reach the plugin", path.Dir(inside), k.Name)
		case at == inside:
			return preflight.Fail(remedy, "the socket %s of provider %q is mounted as a file: after a restart of the plugin kube-apiserver would still hold the old one", inside, k.Name)
		}
		seen = append(seen, path.Dir(inside))
	}
	if len(seen) == 0 {
		return preflight.Skip("no kms provider with a socket")
	}
	return preflight.Pass("%s is mounted from the host", strings.Join(slices.Compact(seen), ", "))
}

func (p *plane) reload(context.Context) preflight.Result {
	m, why := p.encrypting()
	switch {
	case m == nil:
		return preflight.Skip("%s", why)
	case m.flag(reloadFlag) != "true":
		return preflight.Warn("add "+reloadFlag+"=true", "kube-apiserver reads a changed EncryptionConfiguration only when it restarts")
	}
	return preflight.Pass("kube-apiserver reads a changed EncryptionConfiguration by itself, within a minute")
}

func (p *plane) user(context.Context) preflight.Result {
	if p.manifest == nil {
		return preflight.Skip("no static pod of kube-apiserver")
	}
	if p.plugin == nil {
		return preflight.Skip("no valid configuration of kms-plugin")
	}
	uid := uint32(0)
	if u := p.manifest.user; u != nil && *u >= 0 && *u <= math.MaxUint32 {
		uid = uint32(*u)
	}
	if !slices.Contains(p.plugin.Socket.AllowedUIDs, uid) {
		return preflight.Fail(fmt.Sprintf("add %d to socket.allowedUIDs", uid), "kube-apiserver runs as uid %d, which socket.allowedUIDs does not have: its connections are refused", uid)
	}
	return preflight.Pass("kube-apiserver runs as uid %d, which may connect", uid)
}

func firstOf(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}
