package bootstrap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"kms-plugin.io/internal/encryptionconfig"
)

// The steps of switching encryption on. API servers are never all at the same
// step, so each must read what the next one writes: read comes to all of them
// before write comes to the first.
const (
	ReadFile   = "encryption/1-read.yaml"   // the plugin opens, what was there before writes
	writeFile  = "encryption/2-write.yaml"  // the plugin writes, what was there before opens
	finishFile = "encryption/3-finish.yaml" // the plugin alone
)

// encryptionFiles are the EncryptionConfigurations of the steps. A new cluster
// begins with the second one: there is nothing yet that could be read wrongly.
func encryptionFiles(p Params) ([]File, error) {
	if p.From != nil {
		return movingIn(p)
	}
	files := []File{
		text(p, ReadFile, 0o600, "read.yaml"),
		text(p, writeFile, 0o600, "write.yaml"),
		text(p, finishFile, 0o600, "finish.yaml"),
	}
	if !p.Existing {
		files = files[1:]
	}
	return files, nil
}

// movingIn puts the plugin into a file that is in force.
func movingIn(p Params) ([]File, error) {
	if _, err := encryptionconfig.Parse(p.From); err != nil {
		return nil, wrong("from", "give the file of kube-apiserver's flag --encryption-provider-config, as it is in force", "cannot be used: %v", err)
	}
	var out []File
	for _, step := range []struct {
		path string
		put  func(list []*yaml.Node, ours *yaml.Node) []*yaml.Node
	}{
		{ReadFile, func(list []*yaml.Node, ours *yaml.Node) []*yaml.Node { return slices.Insert(list, 1, ours) }},
		{writeFile, func(list []*yaml.Node, ours *yaml.Node) []*yaml.Node { return slices.Insert(list, 0, ours) }},
		{finishFile, func(_ []*yaml.Node, ours *yaml.Node) []*yaml.Node { return []*yaml.Node{ours} }},
	} {
		doc, err := decodeOne(p.From)
		if err != nil {
			return nil, wrong("from", "write one document, without anchors", "cannot be used: %v", err)
		}
		list, err := listToChange(p, doc)
		if err != nil {
			return nil, err
		}
		list.Style = 0
		list.Content = step.put(list.Content, ourProvider(p))
		out = append(out, File{Path: step.path, Mode: 0o600, Data: encode(doc), Secret: true})
	}
	return out, nil
}

// listToChange finds the one list of providers that encrypts. There must be only
// one: the name of a provider is stored with every object, and kube-apiserver
// takes each name once.
func listToChange(p Params, doc *yaml.Node) (*yaml.Node, error) {
	var found []*yaml.Node
	for _, rule := range at(doc, "resources").Content {
		list := at(rule, "providers")
		for _, provider := range list.Content {
			if kms := at(provider, "kms"); kms != nil && at(kms, "name") != nil && at(kms, "name").Value == p.ProviderName {
				return nil, wrong("from", "give our provider another name with --provider-name, or look whether the cluster has been moved in already", "has a kms provider named %q already", p.ProviderName)
			}
		}
		if len(list.Content) > 1 || at(list.Content[0], "identity") == nil {
			found = append(found, list)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, wrong("from", "leave --from out and give --existing-cluster", "encrypts nothing: there is nothing to move in from")
	}
	return nil, wrong("from", "join them into one list of resources first: a kms provider's name can stand in only one", "has %d lists of resources with providers of their own", len(found))
}

func ourProvider(p Params) *yaml.Node {
	str := func(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }
	kms := &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{
		str("apiVersion"), str("v2"), str("name"), str(p.ProviderName),
		str("endpoint"), str("unix://" + SocketPath), str("timeout"), str("3s")}}
	return &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{str("kms"), kms}}
}

// decodeOne reads a tree that holds every value where it is used.
func decodeOne(data []byte) (*yaml.Node, error) {
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := d.Decode(&doc); err != nil {
		return nil, errors.New(firstLine(err))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one document")
	}
	return doc.Content[0], plain(&doc)
}

// plain refuses what moves when its neighbours do.
func plain(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return fmt.Errorf("line %d has an anchor or an alias", n.Line)
	}
	for _, c := range n.Content {
		if err := plain(c); err != nil {
			return err
		}
	}
	return nil
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "yaml: "), "\n")
	return s
}

// at is the value below a name of a mapping, nil if there is none.
func at(n *yaml.Node, name string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

func encode(docs ...*yaml.Node) []byte {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	for _, d := range docs {
		_ = e.Encode(d) // a tree that was decoded, into memory: cannot fail
	}
	_ = e.Close()
	return b.Bytes()
}
