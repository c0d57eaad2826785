package awskms

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// imdsTimeout bounds a look at the metadata service: it is on the same host, or
// not there.
const imdsTimeout = time.Second

// SourceIMDS is Credential.Source of the role of an EC2 instance.
const SourceIMDS = "EC2RoleProvider"

// MetadataV1 tells whether the metadata service of this instance also answers
// requests without a session token (IMDSv1): then whoever can make a process of
// the node fetch a URL can have its credentials. What it answers is not read.
func MetadataV1(ctx context.Context) (bool, error) {
	base := os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT")
	if base == "" {
		base = "http://169.254.169.254"
	}
	ctx, cancel := context.WithTimeout(ctx, imdsTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(base, "/")+"/latest/meta-data/instance-id", nil) // #nosec G704 -- the SDK's own endpoint
	if err != nil {
		return false, err
	}
	client := &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	resp, err := client.Do(req) // #nosec G704 -- as above
	if err != nil {
		return false, cause(err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 1<<10)
	return resp.StatusCode == http.StatusOK, nil
}
