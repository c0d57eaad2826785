package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"kms-plugin.io/internal/preflight"
	"kms-plugin.io/pkg/keys/awskms"
)

const issuerFlag = "--service-account-issuer"

// webIdentity looks at the token that the credential is got with, and who issued it.
func (p *patient) webIdentity(context.Context) preflight.Result {
	if r, ok := p.ready(); !ok {
		return r
	}
	w, err := p.aws.WebIdentity()
	switch {
	case errors.Is(err, awskms.ErrNoJWT):
		return preflight.Warn("look at what writes it: STS takes nothing else", "%v", err)
	case err != nil:
		p.blocked = "there is no token of the web identity"
		return preflight.Fail("look at what writes it, and whether the user of the plugin may read it", "%v", err)
	case w.File == "":
		return preflight.Skip("the credential is not got with the token of a web identity")
	}
	r := circle(w, p.manifest)
	if w.Expires.IsZero() || time.Now().Before(w.Expires) {
		return r
	}
	p.blocked = "the token of the web identity has expired"
	expired := fmt.Sprintf("the token in %s expired at %s, and STS takes it no more", w.File, w.Expires.UTC().Format(time.RFC3339))
	if r.Level == preflight.Warning { // then that is why
		return preflight.Fail(r.Remedy, "%s; %s", expired, r.Message)
	}
	return preflight.Fail("look at what renews it", "%s", expired)
}

// circle warns of a token that is issued by the API server which waits for this
// plugin: after a power cut neither starts.
func circle(w awskms.WebIdentity, manifest string) preflight.Result {
	const remedy = "take an identity that does not come from this cluster: an instance role, or IAM Roles Anywhere (docs/configuration.md, Credentials)"
	const why = "kube-apiserver starts only with this plugin, and this plugin gets a token only from kube-apiserver"
	issuers, err := issuersOf(manifest)
	ours := slices.Contains(issuers, strings.TrimRight(w.Issuer, "/"))
	switch {
	case ours:
		return preflight.Warn(remedy, "the token in %s is issued by %.200q, the cluster that is served: %s", w.File, w.Issuer, why)
	case err == nil:
		return preflight.Pass("a token in %s, issued by %.200q, which is not the cluster that is served", w.File, w.Issuer)
	case w.ServiceAccount || mounted(w.File):
		return preflight.Warn(remedy, "the token in %s is that of a service account, issued by %.200q; if that is the cluster that is served (it cannot be told: %v), %s", w.File, w.Issuer, err, why)
	}
	return preflight.Tell("a token in %s, issued by %.200q; whether that is the cluster that is served cannot be told: %v", w.File, w.Issuer, err)
}

// mounted: kubelet puts tokens of service accounts into pods here.
func mounted(file string) bool {
	file = strings.TrimPrefix(filepath.Clean(file), "/var")
	return strings.HasPrefix(file, "/run/secrets/kubernetes.io/") || strings.HasPrefix(file, "/run/secrets/eks.amazonaws.com/")
}

// issuersOf are the issuers of the API server on this node, without a slash at the
// end: all that its static pod names, of which the first is the one that issues.
func issuersOf(manifest string) ([]string, error) {
	if manifest == "" {
		return nil, errors.New("no --manifest")
	}
	data, err := os.ReadFile(manifest)
	if err != nil {
		return nil, err
	}
	var pod struct {
		Spec struct {
			Containers []struct {
				Name    string   `yaml:"name"`
				Command []string `yaml:"command"`
				Args    []string `yaml:"args"`
			} `yaml:"containers"`
		} `yaml:"spec"`
	}
	if err := yaml.Unmarshal(data, &pod); err != nil {
		return nil, fmt.Errorf("%s is no YAML of a pod", manifest)
	}
	var out []string
	for _, c := range pod.Spec.Containers {
		if c.Name == "kube-apiserver" {
			out = append(out, valuesOf(issuerFlag, slices.Concat(c.Command, c.Args))...)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no kube-apiserver with %s", manifest, issuerFlag)
	}
	return out, nil
}

func valuesOf(flag string, args []string) (out []string) {
	for i, a := range args {
		v, ok := strings.CutPrefix(a, flag+"=")
		if a == flag && i+1 < len(args) {
			v, ok = args[i+1], true
		}
		if v = strings.TrimRight(v, "/"); ok && v != "" {
			out = append(out, v)
		}
	}
	return out
}
