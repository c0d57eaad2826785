package awskms

import (
	"context"
	"fmt"
	"maps"
	"slices"
)

// Regions builds the key in every region that the configuration names, each with
// a client of its own: the SDK never follows the region of an ARN, and a region's
// credentials must not hang on another region's STS. Offline, as New.
func Regions(ctx context.Context, c Config) ([]*KEK, error) {
	if err := Validate(c); err != nil {
		return nil, err
	}
	attempts := maxAttempts
	if len(c.Replicas) > 0 {
		attempts = attemptsOfSeveral
	}
	var out []*KEK
	for i, full := range append([]string{c.KeyARN}, c.Replicas...) {
		a, err := parseARN(full)
		if err != nil {
			return nil, err
		}
		one := c
		if i > 0 {
			one.Endpoint = c.ReplicaEndpoints[a.region]
		}
		creds, cfg, err := newCredentials(ctx, one, a.region)
		if err != nil {
			return nil, err
		}
		client, err := newClient(cfg, one, creds)
		if err != nil {
			return nil, err
		}
		out = append(out, &KEK{arn: a, full: full, client: client, creds: creds, attempts: attempts})
	}
	return out, nil
}

func validateReplicas(c Config, primary arn) error {
	if len(c.Replicas) > 0 && !primary.multiRegion() {
		return &ConfigError{Reason: fmt.Sprintf("keyARN %q is a single-Region key and can have no replicas", c.KeyARN),
			Remedy: "drop replicas; a key becomes multi-Region only at its making (aws kms create-key --multi-region): add such a one as a key of its own"}
	}
	if n := len(c.Replicas); n > MaxReplicas {
		return &ConfigError{Reason: fmt.Sprintf("there are %d replicas, at most %d fit into the time of a request", n, MaxReplicas), Remedy: "keep the nearest"}
	}
	seen := map[string]bool{primary.region: true}
	for _, full := range c.Replicas {
		a, err := parseARN(full)
		if err != nil {
			return err
		}
		if a.identity() != primary.identity() {
			return &ConfigError{Reason: fmt.Sprintf("replica %q is another key than %q", full, c.KeyARN),
				Remedy: fmt.Sprintf("aws kms describe-key --region %s --key-id %s --query KeyMetadata.MultiRegionConfiguration prints the replicas there are", primary.region, c.KeyARN)}
		}
		if seen[a.region] {
			return &ConfigError{Reason: fmt.Sprintf("region %s is named twice", a.region), Remedy: "name each region once, the preferred one in keyARN"}
		}
		seen[a.region] = true
	}
	for _, region := range slices.Sorted(maps.Keys(c.ReplicaEndpoints)) {
		if !seen[region] || region == primary.region {
			return &ConfigError{Reason: fmt.Sprintf("replicaEndpoints names region %q, and no replica is there", region), Remedy: "name the regions of replicas; the one of keyARN has endpoint"}
		}
		if err := validateEndpoint(c.ReplicaEndpoints[region], region); err != nil {
			return err
		}
	}
	return nil
}
