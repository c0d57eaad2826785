// Package awskms is a KEK in AWS KMS: a symmetric key named by its ARN, reached
// in the region of that ARN. It is the only package that links the AWS SDK. It
// must not know local KEKs, rings or key_ids.
//
// Encrypt does not tell which key material it used, Decrypt does (KeyMaterialId,
// service/kms DecryptOutput): so material is known from Unwrap alone.
package awskms

import (
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"
)

// Config names one key. Nothing of it is secret.
type Config struct {
	KeyARN                 string
	Endpoint               string // URL; "" is the public endpoint of the ARN's region
	AllowStaticCredentials bool
	CABundle               string // PEM file to trust instead of the system's roots
	Proxy                  string // URL of an HTTP proxy; "" is none
	// Replicas are the ARNs of the same multi-Region key elsewhere, in order of
	// preference after KeyARN, and ReplicaEndpoints their Endpoint by region.
	Replicas         []string
	ReplicaEndpoints map[string]string
	// Broker starts the programs of profiles; nil: this process does.
	Broker *Broker
}

// MaxReplicas keeps a share of a request's 2.5 s for each region.
const MaxReplicas = 4

// ConfigError is a configuration that can never work, or must not.
type ConfigError struct {
	Reason string
	Remedy string
}

func (e *ConfigError) Error() string { return e.Reason }

// Hint is what to do about it.
func (e *ConfigError) Hint() string { return e.Remedy }

// arn holds the parts of a key ARN
// (https://docs.aws.amazon.com/kms/latest/developerguide/concepts.html#key-id).
type arn struct{ partition, region, account, id string }

var (
	keyARN    = regexp.MustCompile(`^arn:(aws[a-z-]*):kms:([a-z]{2}(?:-[a-z]+)+-[0-9]+):([0-9]{12}):key/((?:mrk-[0-9a-f]{32})|(?:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}))$`)
	publicKMS = regexp.MustCompile(`(?:^|\.)kms(?:-fips)?\.([a-z0-9-]+)\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)$`)
)

func parseARN(s string) (arn, error) {
	m := keyARN.FindStringSubmatch(s)
	if m != nil {
		return arn{m[1], m[2], m[3], m[4]}, nil
	}
	e := &ConfigError{Reason: fmt.Sprintf("keyARN %q is not the ARN of a KMS key", s),
		Remedy: "it looks like arn:aws:kms:<region>:<account>:key/<key id>"}
	if s != "" && (strings.Contains(s, "alias/") || !strings.HasPrefix(s, "arn:")) {
		e.Reason = fmt.Sprintf("keyARN %q is an alias or a bare id: it could come to mean another key while stored data still needs this one", s)
		e.Remedy = fmt.Sprintf("put the ARN that this prints: aws kms describe-key --key-id %q --query KeyMetadata.Arn --output text", s)
	}
	return arn{}, e
}

func (a arn) multiRegion() bool { return strings.HasPrefix(a.id, "mrk-") }

// identity is stored with every object: all replicas of a multi-Region key are
// one KEK, so its region is left out.
func (a arn) identity() string {
	region := a.region
	if a.multiRegion() {
		region = ""
	}
	return strings.Join([]string{"awskms", a.partition, region, a.account, a.id}, ":")
}

// Validate checks a configuration offline. Errors are *ConfigError.
func Validate(c Config) error {
	a, err := parseARN(c.KeyARN)
	if err != nil {
		return err
	}
	if err := validateEndpoint(c.Endpoint, a.region); err != nil {
		return err
	}
	if err := validateReplicas(c, a); err != nil {
		return err
	}
	if c.Proxy != "" {
		if u, err := url.Parse(c.Proxy); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return &ConfigError{Reason: fmt.Sprintf("proxy %q is not a URL", c.Proxy), Remedy: "it looks like http://proxy.example.com:3128"}
		}
	}
	return nil
}

func validateEndpoint(endpoint, region string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return &ConfigError{Reason: fmt.Sprintf("endpoint %q is not a URL", endpoint), Remedy: "it looks like https://kms." + region + ".amazonaws.com"}
	}
	if m := publicKMS.FindStringSubmatch(u.Hostname()); m != nil && m[1] != region {
		return &ConfigError{Reason: fmt.Sprintf("endpoint %q is in region %s, the key in %s", endpoint, m[1], region),
			Remedy: "use the endpoint of the key's own region, or leave endpoint out"}
	}
	return nil
}

// ScrubEnvironment removes what would redirect calls to AWS behind the
// configuration's back, and returns the names it removed. A daemon calls it once
// before it builds a KEK.
func ScrubEnvironment() []string {
	var removed []string
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if value != "" && (strings.HasPrefix(name, "AWS_ENDPOINT_URL") || name == "AWS_CA_BUNDLE") {
			_ = os.Unsetenv(name) // fails for an invalid name only
			removed = append(removed, name)
		}
	}
	// Also those of the shared configuration files.
	_ = os.Setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
	return removed
}
