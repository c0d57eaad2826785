package bootstrap_test

import (
	"errors"
	"strings"
	"testing"

	"kms-plugin.io/internal/bootstrap"
	"kms-plugin.io/internal/config"
	"kms-plugin.io/pkg/keys/awskms"
)

// clearAWS takes away what would make awskms refuse for another reason.
func clearAWS(t testing.TB) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_CA_BUNDLE"} {
		t.Setenv(name, "")
	}
}

const id = "1234abcd-12ab-34cd-56ef-1234567890ab"

// Each parameter that makes no sense is named, with a remedy.
func TestRefuses(t *testing.T) {
	type P = bootstrap.Params
	ours := strings.Replace(otherPlugin, "name: aws-encryption-provider", "name: kms-plugin", 1)
	twice := aescbc + "  - resources: [pods]\n    providers: [{secretbox: {keys: [{name: a, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}}]\n"
	for name, tc := range map[string]struct {
		p            P
		reason, hint string
	}{
		"no cluster id":        {P{LocalFile: true}, `--cluster-id "" is not a cluster id`, "choose a name"},
		"cluster id":           {P{ClusterID: "a b", LocalFile: true}, `--cluster-id "a b"`, "choose a name"},
		"cluster id newline":   {P{ClusterID: "a\nb: c", LocalFile: true}, `--cluster-id "a\nb: c"`, "choose a name"},
		"long cluster id":      {P{ClusterID: strings.Repeat("a", 64), LocalFile: true}, "1 to 63", "choose a name"},
		"no key":               {P{ClusterID: "c"}, "--key-arn and --localfile: exactly one", "for a lab"},
		"two keys":             {P{ClusterID: "c", KeyARN: arn, LocalFile: true}, "exactly one", "for a lab"},
		"key name":             {P{ClusterID: "c", LocalFile: true, KeyName: "K_1"}, `--key-name "K_1"`, "kek-1 is fine"},
		"key name is a path":   {P{ClusterID: "c", LocalFile: true, KeyName: ".."}, `--key-name ".."`, "kek-1 is fine"},
		"alias":                {P{ClusterID: "c", KeyARN: "arn:aws:kms:eu-west-1:111122223333:alias/k"}, "is an alias or a bare id", "aws kms describe-key --key-id"},
		"bare id":              {P{ClusterID: "c", KeyARN: id}, "is an alias or a bare id", "aws kms describe-key --key-id"},
		"other service":        {P{ClusterID: "c", KeyARN: "arn:aws:s3:::bucket"}, "is not the ARN of a KMS key", "it looks like arn:aws:kms"},
		"no account":           {P{ClusterID: "c", KeyARN: "arn:aws:kms:eu-west-1::key/" + id}, "is not the ARN", "it looks like"},
		"region of China":      {P{ClusterID: "c", KeyARN: "arn:aws:kms:cn-north-1:111122223333:key/" + id}, "names region cn-north-1 in partition aws, and it is in aws-cn", "copy the ARN"},
		"partition of China":   {P{ClusterID: "c", KeyARN: "arn:aws-cn:kms:eu-west-1:111122223333:key/" + id}, "names region eu-west-1, which is not in partition aws-cn", "copy the ARN"},
		"partition of GovCl.":  {P{ClusterID: "c", KeyARN: "arn:aws-us-gov:kms:us-east-1:111122223333:key/" + id}, "not in partition aws-us-gov", "copy the ARN"},
		"short mrk":            {P{ClusterID: "c", KeyARN: "arn:aws:kms:eu-west-1:111122223333:key/mrk-12"}, "is not the ARN", "it looks like"},
		"ARN and more":         {P{ClusterID: "c", KeyARN: arn + "\nx: y"}, "is not the ARN", "it looks like"},
		"role":                 {P{ClusterID: "c", KeyARN: arn, NodeRole: "control-plane"}, `--node-role "control-plane" is not`, "it looks like arn:aws:iam"},
		"role is a user":       {P{ClusterID: "c", KeyARN: arn, NodeRole: "arn:aws:iam::111122223333:user/x"}, "is not the ARN of an IAM role", "it looks like"},
		"role elsewhere":       {P{ClusterID: "c", KeyARN: arn, NodeRole: "arn:aws-cn:iam::111122223333:role/x"}, "is in partition aws-cn, the key in aws", "partition"},
		"role for a lab":       {P{ClusterID: "c", LocalFile: true, NodeRole: role}, "--localfile has no use for", "leave"},
		"endpoint":             {P{ClusterID: "c", KeyARN: arn, Endpoint: "kms.local"}, `--endpoint "kms.local" is not a URL`, "it looks like https"},
		"layout":               {P{ClusterID: "c", LocalFile: true, Layout: "k3s"}, `--layout "k3s" is neither`, "generic otherwise"},
		"run":                  {P{ClusterID: "c", LocalFile: true, Run: "deployment"}, `--run "deployment" is neither`, "static-pod"},
		"image of systemd":     {P{ClusterID: "c", LocalFile: true, Run: "systemd", Image: "a.b/c:1"}, "--image is not used with --run systemd", "leave it out"},
		"image without tag":    {P{ClusterID: "c", LocalFile: true, Image: "a.b/c"}, "names no version", "registry.example.com"},
		"image with port only": {P{ClusterID: "c", LocalFile: true, Image: "a.b:5000/c"}, "names no version", "registry.example.com"},
		"latest":               {P{ClusterID: "c", LocalFile: true, Image: "a.b/c:latest"}, "names no version", "registry.example.com"},
		"image of nobody":      {P{ClusterID: "c", LocalFile: true, Image: "kms-plugin:1"}, "is not a full image reference", "registry.example.com"},
		"image of a user":      {P{ClusterID: "c", LocalFile: true, Image: "me/kms-plugin:1"}, "is not a full image reference", "registry.example.com"},
		"image injection":      {P{ClusterID: "c", LocalFile: true, Image: "a.b/c:1\n  x: y"}, "is not a full image reference", "registry.example.com"},
		"capital resource":     {P{ClusterID: "c", LocalFile: true, Resources: []string{"Secrets"}}, `--resources has "Secrets"`, "write secrets"},
		"star":                 {P{ClusterID: "c", LocalFile: true, Resources: []string{"*"}}, "which is not a resource", "*.* for everything"},
		"all groups":           {P{ClusterID: "c", LocalFile: true, Resources: []string{"secrets.*"}}, "which is not a resource", "*.apps"},
		"empty resource":       {P{ClusterID: "c", LocalFile: true, Resources: []string{""}}, "which is not a resource", "write secrets"},
		"singular":             {P{ClusterID: "c", LocalFile: true, Resources: []string{"secret"}}, "there is no such resource: nothing would be encrypted", "write secrets"},
		"no group":             {P{ClusterID: "c", LocalFile: true, Resources: []string{"deployments"}}, "there is no such resource", "write deployments.apps"},
		"wrong group":          {P{ClusterID: "c", LocalFile: true, Resources: []string{"secrets.apps"}}, "there is no such resource", "write secrets"},
		"unknown group":        {P{ClusterID: "c", LocalFile: true, Resources: []string{"*.app"}}, "there is no such group", "*.apps"},
		"events":               {P{ClusterID: "c", LocalFile: true, Resources: []string{"events.events.k8s.io"}}, "does not take", "write events"},
		"extensions":           {P{ClusterID: "c", LocalFile: true, Resources: []string{"*.extensions"}}, "group that is gone", "write"},
		"doubled":              {P{ClusterID: "c", LocalFile: true, Resources: []string{"secrets", "secrets"}}, `names "secrets" twice`, "once"},
		"masked by core":       {P{ClusterID: "c", LocalFile: true, Resources: []string{"secrets", "*."}}, "beside a pattern that holds it", "narrower"},
		"masked by all":        {P{ClusterID: "c", LocalFile: true, Resources: []string{"*.*", "secrets"}}, "beside a pattern that holds it", "narrower"},
		"provider name":        {P{ClusterID: "c", LocalFile: true, ProviderName: "a:b"}, `--provider-name "a:b"`, "cannot be changed later"},
		"encryption path":      {P{ClusterID: "c", LocalFile: true, EncryptionPath: "enc.yaml"}, `--encryption-path "enc.yaml"`, "it looks like /etc"},
		"path at the root":     {P{ClusterID: "c", LocalFile: true, EncryptionPath: "/enc.yaml"}, "in a directory of its own", "it looks like /etc"},
		"path with dots":       {P{ClusterID: "c", LocalFile: true, EncryptionPath: "/etc/../enc/enc.yaml"}, "not a clean absolute path", "it looks like /etc"},
		"from where":           {P{ClusterID: "c", LocalFile: true, From: []byte(aescbc)}, "--encryption-path is needed with --from", "--encryption-provider-config"},
		"from and resources":   {P{ClusterID: "c", LocalFile: true, From: []byte(aescbc), EncryptionPath: "/a/b", Resources: []string{"secrets"}}, "--resources does not go with --from", "leave it out"},
		"from rubbish":         {P{ClusterID: "c", LocalFile: true, From: []byte("a: b"), EncryptionPath: "/a/b"}, "--from cannot be used: ", "as it is in force"},
		"from two documents":   {P{ClusterID: "c", LocalFile: true, From: []byte(aescbc + "---\n" + aescbc), EncryptionPath: "/a/b"}, "more than one document", "in force"},
		"from with anchors":    {P{ClusterID: "c", LocalFile: true, From: []byte(strings.Replace(aescbc, "[events]", "&x [events]", 1)), EncryptionPath: "/a/b"}, "has an anchor", "without anchors"},
		"from ours":            {P{ClusterID: "c", LocalFile: true, From: []byte(ours), EncryptionPath: "/a/b"}, `has a kms provider named "kms-plugin" already`, "--provider-name"},
		"from nothing":         {P{ClusterID: "c", LocalFile: true, From: []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{resources: [secrets], providers: [{identity: {}}]}]\n"), EncryptionPath: "/a/b"}, "encrypts nothing", "--existing-cluster"},
		"from two lists":       {P{ClusterID: "c", LocalFile: true, From: []byte(twice), EncryptionPath: "/a/b"}, "has 2 lists of resources", "join them"},
		"kubeadm for generic":  {P{ClusterID: "c", LocalFile: true, Layout: "generic", KubeadmConfig: []byte("a: b")}, "does not go with --layout generic", "leave one"},
		"kubeadm rubbish":      {P{ClusterID: "c", LocalFile: true, KubeadmConfig: []byte("a: [")}, "--kubeadm-config cannot be used: ", "kubectl -n kube-system get configmap"},
		"kubeadm of another":   {P{ClusterID: "c", LocalFile: true, KubeadmConfig: []byte("kind: ConfigMap\n")}, "holds no ClusterConfiguration", "kubectl -n kube-system get configmap"},
		"kubeadm twice":        {P{ClusterID: "c", LocalFile: true, KubeadmConfig: []byte("kind: ClusterConfiguration\n---\nkind: ClusterConfiguration\n")}, "holds ClusterConfiguration twice", "kubectl"},
		"kubeadm of old":       {P{ClusterID: "c", LocalFile: true, KubeadmConfig: []byte("kind: ClusterConfiguration\napiVersion: kubeadm.k8s.io/v1beta3\n")}, "v1beta4 or later", "kubeadm config migrate"},
		"kubeadm has it":       {P{ClusterID: "c", LocalFile: true, KubeadmConfig: []byte("kind: ClusterConfiguration\napiVersion: kubeadm.k8s.io/v1beta4\napiServer: {extraArgs: [{name: encryption-provider-config, value: /x/y}]}\n")}, `has "encryption-provider-config" already, with another value`, "--from"},
		"kubeadm wrong type":   {P{ClusterID: "c", LocalFile: true, KubeadmConfig: []byte("kind: ClusterConfiguration\napiVersion: kubeadm.k8s.io/v1beta4\napiServer: {extraArgs: {a: b}}\n")}, "has extraArgs of the wrong type in line 3", "kubectl"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bootstrap.Files(tc.p)
			var e *bootstrap.Error
			if !errors.As(err, &e) || !strings.Contains(e.Error(), tc.reason) || !strings.Contains(e.Hint(), tc.hint) {
				t.Fatalf("Files = %v, hint %q; want %q, hint %q", err, hint(err), tc.reason, tc.hint)
			}
			if strings.Contains(e.Error()+e.Hint(), "\n") {
				t.Errorf("not one line: %q, %q", e, e.Hint())
			}
		})
	}
}

func hint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

// What is fine is fine, in each partition, and awskms agrees.
func TestAccepts(t *testing.T) {
	clearAWS(t)
	for _, a := range []string{arn,
		"arn:aws-cn:kms:cn-northwest-1:111122223333:key/" + id,
		"arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/" + id,
		"arn:aws-iso:kms:us-iso-east-1:111122223333:key/" + id,
		"arn:aws:kms:ap-southeast-4:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab",
	} {
		if _, err := bootstrap.Files(bootstrap.Params{ClusterID: "c", KeyARN: a}); err != nil {
			t.Errorf("%s: %v, hint %q", a, err, hint(err))
		}
		if err := awskms.Validate(awskms.Config{KeyARN: a}); err != nil {
			t.Errorf("awskms refuses %s: %v", a, err)
		}
	}
	for _, list := range [][]string{{"secrets"}, {"*.*"}, {"*."}, {"*.apps"}, {"secrets", "*.apps"}, {"widgets.example.com"}, {"*.example.com"}, {"secrets", "configmaps", "events"}, {"newthings.storage.k8s.io"}} {
		if _, err := bootstrap.Files(bootstrap.Params{ClusterID: "c", LocalFile: true, Resources: list}); err != nil {
			t.Errorf("%v: %v, hint %q", list, err, hint(err))
		}
	}
	for _, i := range []string{bootstrap.Image, "localhost:5000/kms:1", "registry.example.com:443/a/b/c:v1.2.3-rc.1", "a.example/b@sha256:" + strings.Repeat("0", 64)} {
		if _, err := bootstrap.Files(bootstrap.Params{ClusterID: "c", LocalFile: true, Image: i}); err != nil {
			t.Errorf("%s: %v, hint %q", i, err, hint(err))
		}
	}
}

// Whatever the parameters: an error with one line and a remedy, or files that the
// programs take (which Files itself checks), with exactly these values.
func FuzzFiles(f *testing.F) {
	clearAWS(f)
	f.Add("prod", arn, "kek-1", role, bootstrap.Image, "secrets,*.apps", "kms-plugin", "", false)
	f.Add("1e3", "arn:aws-cn:kms:cn-north-1:111122223333:key/"+id, "null", "", "a.b/c:1", "*.*", "on", "/etc/x/y", true)
	f.Fuzz(func(t *testing.T, cluster, key, name, role, image, resources, provider, path string, systemd bool) {
		p := bootstrap.Params{ClusterID: cluster, KeyARN: key, KeyName: name, NodeRole: role, Image: image,
			Resources: strings.Split(resources, ","), ProviderName: provider, EncryptionPath: path}
		if systemd {
			p.Run = bootstrap.Systemd
		}
		files, err := bootstrap.Files(p)
		if err != nil {
			var e *bootstrap.Error
			if !errors.As(err, &e) || e.Hint() == "" || strings.Contains(e.Error()+e.Hint(), "\n") {
				t.Fatalf("Files(%+v) = %v, hint %q", p, err, hint(err))
			}
			return
		}
		c, problems := config.Parse(data(t, files, "kms-plugin/config.yaml"))
		if problems != nil {
			t.Fatal(problems)
		}
		if err := awskms.Validate(awskms.Config{KeyARN: c.Keys[0].AWSKMS.KeyARN}); err != nil {
			t.Fatal(err)
		}
		if c.ClusterID != cluster || c.Keys[0].AWSKMS.KeyARN != key || name != "" && c.Keys[0].Name != name {
			t.Fatalf("the configuration has %+v", c)
		}
	})
}

// What is read may be anything.
func FuzzInput(f *testing.F) {
	f.Add([]byte(aescbc), []byte(clusterConfiguration))
	f.Add([]byte(otherPlugin), []byte("kind: ClusterConfiguration\napiVersion: kubeadm.k8s.io/v1\napiServer:\n"))
	f.Add([]byte("resources: [{providers: [null]}]"), []byte("- a\n---\n"))
	f.Fuzz(func(t *testing.T, from, kubeadm []byte) {
		_, err := bootstrap.Files(bootstrap.Params{ClusterID: "c", LocalFile: true, From: from, EncryptionPath: "/etc/enc/enc.yaml", KubeadmConfig: kubeadm})
		var e *bootstrap.Error
		if err != nil && !errors.As(err, &e) {
			t.Fatal(err)
		}
	})
}
