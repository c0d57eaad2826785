package bootstrap

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"text/template"

	yaml "go.yaml.in/yaml/v3"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/encryptionconfig"
)

//go:embed templates
var templates embed.FS

// view is what templates see.
type view struct {
	Params
	Config, Socket, SocketDir, State, Audit, Listen string
}

// text fills a template in. Templates are part of the program and every value was
// validated, so a failure is a fault of the program, which every test shows.
func text(p Params, path string, mode fs.FileMode, name string) File {
	t := template.New(name).Funcs(template.FuncMap{
		"yaml": scalar, "patch": jsonPatch, "command": command, "dir": dir, "base": base, "roleName": roleName,
	}).Option("missingkey=error")
	t = template.Must(t.ParseFS(templates, "templates/"+name))
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, name, view{p, ConfigPath, SocketPath, SocketDir, StateDir, AuditDir, ListenAddress}); err != nil {
		panic(err) // see above
	}
	return File{Path: path, Mode: mode, Data: b.Bytes()}
}

// scalar is a value as YAML, in quotes where it would be taken for something else.
func scalar(v any) string {
	b, err := yaml.Marshal(v)
	if err != nil {
		panic(err) // unreachable: strings, and lists of them
	}
	return strings.TrimSpace(string(b))
}

func dir(path string) string { return path[:strings.LastIndexByte(path, '/')] }

func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// jsonPatch adds our flags and mounts to a manifest of kube-apiserver (RFC 6902).
func jsonPatch(p Params) string {
	type operation struct {
		Op    string `yaml:"op"`
		Path  string `yaml:"path"`
		Value any    `yaml:"value"`
	}
	var ops []operation
	for _, a := range p.Args() {
		ops = append(ops, operation{"add", "/spec/containers/0/command/-", "--" + a.Name + "=" + a.Value})
	}
	type hostPath struct {
		Path string `yaml:"path"`
		Type string `yaml:"type"`
	}
	for _, m := range p.Mounts() {
		ops = append(ops, operation{"add", "/spec/containers/0/volumeMounts/-", struct {
			Name      string `yaml:"name"`
			MountPath string `yaml:"mountPath"`
			ReadOnly  bool   `yaml:"readOnly"`
		}{m.Name, m.MountPath, m.ReadOnly}},
			operation{"add", "/spec/volumes/-", struct {
				Name     string   `yaml:"name"`
				HostPath hostPath `yaml:"hostPath"`
			}{m.Name, hostPath{m.HostPath, m.PathType}}})
	}
	var n yaml.Node
	if err := n.Encode(ops); err != nil {
		panic(err) // unreachable: plain values
	}
	return strings.TrimSpace(string(encode(&n)))
}

// command is the command line that makes these files again.
func command(p Params) string {
	args := []string{"kmsctl init", "--cluster-id " + p.ClusterID}
	add := func(flag, value, standard string) {
		if value != "" && value != standard {
			args = append(args, "--"+flag+" "+value)
		}
	}
	add("key-arn", p.KeyARN, "")
	if p.LocalFile {
		args = append(args, "--localfile")
	}
	add("key-name", p.KeyName, "kek-1")
	add("endpoint", p.Endpoint, "")
	add("node-role", p.NodeRole, "")
	add("layout", string(p.Layout), string(Kubeadm))
	add("run", string(p.Run), string(StaticPod))
	add("image", p.Image, Image)
	if list := strings.Join(p.Resources, ","); strings.Contains(list, "*") {
		args = append(args, "--resources '"+list+"'")
	} else {
		add("resources", list, "secrets")
	}
	add("provider-name", p.ProviderName, "kms-plugin")
	add("encryption-path", p.EncryptionPath, EncryptionPath)
	switch {
	case p.From != nil:
		args = append(args, "--from FILE")
	case p.Existing:
		args = append(args, "--existing-cluster")
	}
	if p.KubeadmConfig != nil {
		args = append(args, "--kubeadm-config FILE")
	}
	return strings.Join(args, " \\\n      ")
}

func roleName(arn string) string { return base(arn) }

// checkFile reads a file as the program does that it is for.
func checkFile(f File) error {
	switch {
	case f.Path == ConfigFile:
		if _, problems := config.Parse(f.Data); problems != nil {
			return problems
		}
	case strings.HasPrefix(f.Path, "encryption/"):
		_, err := encryptionconfig.Parse(f.Data)
		return err
	case strings.HasSuffix(f.Path, ".yaml"):
		return yaml.Unmarshal(f.Data, new(yaml.Node))
	case strings.HasSuffix(f.Path, ".json") && !json.Valid(f.Data):
		return errors.New("it is not JSON")
	}
	return nil
}
