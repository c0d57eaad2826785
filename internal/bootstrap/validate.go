package bootstrap

import (
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"kms-plugin.io/internal/stored"
)

// The forms are narrow, so that no value needs quoting in YAML, JSON or a shell.
var (
	clusterID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	keyName   = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?$`)
	provider  = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?$`)
	absolute  = regexp.MustCompile(`^/[A-Za-z0-9._/-]{1,200}$`)
	image     = regexp.MustCompile(`^[a-z0-9.-]+(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?$`)
	resource  = regexp.MustCompile(`^(?:\*|[a-z0-9][a-z0-9-]{0,62})(?:\.(?:\*|[a-z0-9][a-z0-9.-]{0,252})?)?$`)
	// keyARN is the form that pkg/keys/awskms accepts; a test holds them together.
	// That package is not asked, so that kmsctl need not link the SDK.
	keyARN  = regexp.MustCompile(`^arn:(aws[a-z-]*):kms:([a-z]{2}(?:-[a-z]+)+-[0-9]+):([0-9]{12}):key/((?:mrk-[0-9a-f]{32})|(?:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}))$`)
	roleARN = regexp.MustCompile(`^arn:(aws[a-z-]*):iam::([0-9]{12}):role/(?:[A-Za-z0-9+=,.@_-]{1,128}/)*([A-Za-z0-9+=,.@_-]{1,64})$`)
)

// partitions are the beginnings of the regions of those partitions that are not
// the public one.
var partitions = map[string][]string{
	"aws-cn": {"cn-"}, "aws-us-gov": {"us-gov-"}, "aws-iso": {"us-iso-"}, "aws-iso-b": {"us-isob-"}, "aws-iso-e": {"eu-isoe-"}, "aws-iso-f": {"us-isof-", "eu-isof-"}, "aws-eusc": {"eusc-"},
}

func wrong(flag, remedy, format string, args ...any) error {
	return &Error{Flag: flag, Reason: fmt.Sprintf(format, args...), Remedy: remedy}
}

func (p Params) validate() error {
	if !clusterID.MatchString(p.ClusterID) {
		return wrong("cluster-id", "choose a name that no other of your clusters has; it is bound into everything stored and cannot be changed later",
			"%q is not a cluster id: 1 to 63 of A-Z a-z 0-9 . _ -", p.ClusterID)
	}
	for _, check := range []func() error{p.validateKey, p.validateRun, p.validateEncryption} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (p Params) validateKey() error {
	if !keyName.MatchString(p.KeyName) {
		return wrong("key-name", "it is stored with every object as part of key_id; kek-1 is fine", "%q is not a key name: 1 to 63 of a-z 0-9 . -", p.KeyName)
	}
	if (p.KeyARN == "") == !p.LocalFile {
		return wrong("key-arn", "give --key-arn ARN, or --localfile for a lab", "and --localfile: exactly one of them is needed")
	}
	if p.LocalFile {
		if p.NodeRole != "" || p.Endpoint != "" {
			return wrong("localfile", "leave them out", "has no use for --node-role and --endpoint")
		}
		return nil
	}
	if err := validateARN(p.KeyARN); err != nil {
		return err
	}
	if p.Endpoint != "" {
		if u, err := url.Parse(p.Endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.ContainsAny(p.Endpoint, "\"\\ \n") {
			return wrong("endpoint", "it looks like https://vpce-0123-abcd.kms.eu-west-1.vpce.amazonaws.com", "%q is not a URL", p.Endpoint)
		}
	}
	if p.NodeRole != "" {
		m := roleARN.FindStringSubmatch(p.NodeRole)
		if m == nil {
			return wrong("node-role", "it looks like arn:aws:iam::111122223333:role/NAME", "%q is not the ARN of an IAM role", p.NodeRole)
		}
		if key := keyARN.FindStringSubmatch(p.KeyARN); m[1] != key[1] {
			return wrong("node-role", "give a role of the partition that the key is in", "is in partition %s, the key in %s", m[1], key[1])
		}
	}
	return nil
}

func validateARN(arn string) error {
	m := keyARN.FindStringSubmatch(arn)
	if m == nil && (strings.Contains(arn, "alias/") || !strings.HasPrefix(arn, "arn:")) {
		return wrong("key-arn", fmt.Sprintf("give the ARN that this prints: aws kms describe-key --key-id %q --query KeyMetadata.Arn --output text", arn),
			"%q is an alias or a bare id: it could come to mean another key while stored data still needs this one", arn)
	}
	if m == nil {
		return wrong("key-arn", "it looks like arn:aws:kms:<region>:<account>:key/<key id>", "%q is not the ARN of a KMS key", arn)
	}
	partition, region := m[1], m[2]
	for name, prefixes := range partitions {
		for _, prefix := range prefixes {
			if fits := strings.HasPrefix(region, prefix); fits && name != partition {
				return wrong("key-arn", "copy the ARN from the console or from aws kms describe-key", "names region %s in partition %s, and it is in %s", region, partition, name)
			}
		}
	}
	if prefixes := partitions[partition]; prefixes != nil && !hasAnyPrefix(region, prefixes) {
		return wrong("key-arn", "copy the ARN from the console or from aws kms describe-key", "names region %s, which is not in partition %s", region, partition)
	}
	return nil
}

func hasAnyPrefix(s string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

func (p Params) validateRun() error {
	if p.Layout != Kubeadm && p.Layout != Generic {
		return wrong("layout", "kubeadm if kubeadm makes the manifest of kube-apiserver, generic otherwise", "%q is neither kubeadm nor generic", p.Layout)
	}
	if p.Run != StaticPod && p.Run != Systemd {
		return wrong("run", "static-pod needs nothing but a kubelet, systemd is up before the kubelet", "%q is neither static-pod nor systemd", p.Run)
	}
	if p.KubeadmConfig != nil && p.Layout != Kubeadm {
		return wrong("kubeadm-config", "leave one of the two out", "does not go with --layout generic")
	}
	if p.Run == Systemd {
		if p.Image != Image {
			return wrong("image", "leave it out, or give --run static-pod", "is not used with --run systemd")
		}
		return nil
	}
	const remedy = "name host, repository and version, such as registry.example.com/kms-plugin:v1.2.3"
	switch host, _, _ := strings.Cut(p.Image, "/"); {
	case !image.MatchString(p.Image) || !strings.ContainsAny(host, ".:") && host != "localhost":
		return wrong("image", remedy, "%q is not a full image reference", p.Image)
	case strings.HasSuffix(p.Image, ":latest") || !strings.Contains(p.Image[strings.LastIndex(p.Image, "/"):], ":"):
		return wrong("image", remedy, "%q names no version: what runs beside the API server must not change by itself", p.Image)
	}
	return nil
}

func (p Params) validateEncryption() error {
	if !provider.MatchString(p.ProviderName) {
		return wrong("provider-name", "it is stored with every object and cannot be changed later; kms-plugin is fine", "%q is not a provider name: 1 to 63 of a-z 0-9 . -", p.ProviderName)
	}
	if p.From != nil && p.EncryptionPath == "" {
		return wrong("encryption-path", "give the value of kube-apiserver's flag --encryption-provider-config", "is needed with --from: where on a node do API servers read that file?")
	}
	if !absolute.MatchString(p.EncryptionPath) || filepath.Clean(p.EncryptionPath) != p.EncryptionPath || filepath.Dir(p.EncryptionPath) == "/" {
		return wrong("encryption-path", "it looks like "+EncryptionPath, "%q is not a clean absolute path in a directory of its own", p.EncryptionPath)
	}
	if p.From != nil {
		if len(p.Resources) > 0 {
			return wrong("resources", "leave it out: which resources are encrypted is in the file of --from", "does not go with --from")
		}
		return nil
	}
	return validateResources(p.Resources)
}

// validateResources refuses what kube-apiserver refuses (apis/apiserver/validation,
// validateResourceNames and validateResourceOverlap), and names that would
// encrypt nothing.
func validateResources(resources []string) error {
	seen := map[string]bool{}
	for _, r := range resources {
		if err := validateResource(r); err != nil {
			return err
		}
		if seen[r] {
			return wrong("resources", "name each once", "names %q twice", r)
		}
		seen[r] = true
	}
	for _, r := range resources {
		g := stored.ParseGroupResource(r)
		wide := "*." + g.Group
		if r != "*.*" && seen["*.*"] || r != wide && seen[wide] {
			return wrong("resources", "leave the narrower one out", "names %q beside a pattern that holds it", r)
		}
	}
	return nil
}

func validateResource(r string) error {
	g := stored.ParseGroupResource(r)
	const forms = "write secrets, configmaps, deployments.apps, widgets.example.com, *.apps, *. for the core group, or *.* for everything"
	switch {
	case !resource.MatchString(r), g.Group == "*" && g.Resource != "*", r == "*", strings.HasSuffix(g.Group, "."):
		return wrong("resources", forms, "has %q, which is not a resource", r)
	case g.Group == "events.k8s.io":
		return wrong("resources", "write events: they are stored in the core group", "has %q, which kube-apiserver does not take", r)
	case g.Group == "extensions":
		return wrong("resources", forms, "has %q, of a group that is gone", r)
	}
	if g.Resource == "*" && g.Group != "*" && !strings.Contains(g.Group, ".") && !stored.BuiltinGroup(g.Group) {
		return wrong("resources", forms, "has %q, and there is no such group: nothing would be encrypted", r)
	}
	if g.Resource == "*" || stored.Builtin(g) {
		return nil
	}
	if homes := stored.GroupsOf(g.Resource); len(homes) > 0 && !strings.Contains(g.Group, ".") {
		return wrong("resources", "write "+stored.GroupResource{Group: homes[0], Resource: g.Resource}.String(), "has %q, and there is no such resource: nothing would be encrypted", r)
	}
	// Groups of custom resources have a dot; one of Kubernetes itself may have
	// got a resource that this release does not know.
	if !strings.Contains(g.Group, ".") {
		return wrong("resources", forms, "has %q, and there is no such resource: nothing would be encrypted", r)
	}
	return nil
}
