// Package daemon puts the parts of kms-plugin together: configuration, ring,
// custody, socket, HTTP listener, audit log and metrics, and keeps them running
// and reloaded. It holds no logic of its own about keys; what it must not know
// is how any of them work inside.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kms-plugin.io/internal/config"
	"kms-plugin.io/internal/custody"
	"kms-plugin.io/internal/health"
	"kms-plugin.io/internal/metrics"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/pkg/keys/localfile"
	"kms-plugin.io/pkg/keys/localkek"
	"kms-plugin.io/pkg/keys/regions"
)

// links are what KEKs use of this process; none of them for a doctor.
type links struct {
	metrics *metrics.Metrics
	broker  *awskms.Broker
}

// build makes the ring that a configuration describes: offline, no call to any
// KMS. KEKs of the ring before are taken over where nothing about them changed,
// so that their connections and credentials live on.
func build(ctx context.Context, c *config.Config, l links, before map[string]keys.KEK) (*keys.Ring, map[string]keys.KEK, config.Problems) {
	var problems config.Problems
	var entries []keys.Entry
	keks := map[string]keys.KEK{}
	for i, k := range c.Keys {
		kek, ok := before[k.Fingerprint()]
		if !ok || k.LocalFile != nil { // a keyset may have new keys under the same path
			var err error
			if kek, err = provider(ctx, k, l); err != nil {
				problems = append(problems, problemOf(c, fmt.Sprintf("keys[%d]", i), k.Name, err))
				continue
			}
		}
		keks[k.Fingerprint()] = kek
		entries = append(entries, keys.Entry{Name: k.Name, Role: k.Role, ActivateAt: k.ActivateAt,
			Generation: k.Generation, KEK: kek, RegionQuorum: regionQuorum(k), Context: encryptionContext(k), AlsoWrapWith: k.AlsoWrapWith})
	}
	if problems != nil {
		return nil, nil, problems
	}
	ring, err := keys.NewRing(c.ClusterID, c.Wrapping, entries...)
	if err != nil {
		return nil, nil, config.Problems{{Line: c.Line("keys"), Path: "keys", Message: err.Error()}}
	}
	return ring, keks, nil
}

// Provider makes the KEK of a key: offline, no call to any KMS.
func Provider(ctx context.Context, k config.Key) (keys.KEK, error) { return provider(ctx, k, links{}) }

func provider(ctx context.Context, k config.Key, l links) (keys.KEK, error) {
	switch {
	case k.AWSKMS != nil:
		return awsKEK(ctx, k, l)
	case k.LocalFile != nil:
		kek, err := localfile.New(k.LocalFile.Path)
		return metered{KEK: kek, name: k.Name, metrics: l.metrics}, err
	}
	return nil, errors.New("no provider")
}

// awsKEK meters each region by itself, below the choice among them.
func awsKEK(ctx context.Context, k config.Key, l links) (keys.KEK, error) {
	a, aws := k.AWSKMS, AWSConfig(k)
	aws.Broker = l.broker
	all, err := awskms.Regions(ctx, aws)
	if err != nil {
		return nil, err
	}
	var in []keys.Region
	for _, one := range all {
		in = append(in, keys.Region{Name: one.Region(), KEK: metered{KEK: one, name: k.Name, metrics: l.metrics}})
	}
	if len(in) == 1 {
		return in[0].KEK, nil
	}
	return regions.New(a.RegionQuorum, in...)
}

func regionQuorum(k config.Key) keys.Quorum {
	if k.AWSKMS != nil {
		return k.AWSKMS.RegionQuorum
	}
	return ""
}

// AWSConfig is what package awskms is told of a key in AWS KMS.
func AWSConfig(k config.Key) awskms.Config {
	a := k.AWSKMS
	return awskms.Config{KeyARN: a.KeyARN, Endpoint: a.Endpoint, Replicas: a.Replicas, ReplicaEndpoints: a.ReplicaEndpoints,
		AllowStaticCredentials: a.AllowStaticCredentials, CABundle: a.CABundle, Proxy: a.Proxy}
}

func encryptionContext(k config.Key) map[string]string {
	if k.AWSKMS != nil {
		return k.AWSKMS.EncryptionContext
	}
	return nil
}

// problemOf gives a provider's error the line of its key.
func problemOf(c *config.Config, path, name string, err error) config.Problem {
	p := config.Problem{Line: c.Line(path), Path: path, Message: fmt.Sprintf("key %q: %v", name, err)}
	var remote *keys.Error
	if errors.As(err, &remote) {
		p.Message, p.Hint = fmt.Sprintf("key %q: %v", name, remote.Err), remote.Hint
	}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		p.Hint = hinted.Hint()
	}
	return p
}

func tuning(c *config.Config) custody.Tuning {
	suite := localkek.XAES
	if c.Suite == config.SuiteAES {
		suite = localkek.AES
	}
	return custody.Tuning{
		Suite:         suite,
		ProbeInterval: c.Probe.Interval,
		Observations:  c.Rotation.Observations, SettleTime: c.Rotation.SettleTime, ReadableFor: c.Rotation.ReadableFor,
		Limits: health.Limits{MaxOutage: c.Health.MaxOutage, MaxOutageDecrypt: c.Health.MaxOutageDecrypt,
			KeyState: c.Health.KeyState, Authorization: c.Health.Authorization, Credential: c.Health.Credential,
			WipeAfter: c.Health.WipeAfter},
	}
}

// metered counts and times the remote calls of one key.
type metered struct {
	keys.KEK
	name    string
	metrics *metrics.Metrics
}

func (k metered) Wrap(ctx context.Context, p keys.Secret, bound keys.Context) (keys.Wrapped, error) {
	start := time.Now()
	w, err := k.KEK.Wrap(ctx, p, bound)
	k.count(keys.OpWrap, w.Region, err, start)
	return w, err
}

func (k metered) Unwrap(ctx context.Context, blob []byte, bound keys.Context) (keys.Unwrapped, error) {
	start := time.Now()
	u, err := k.KEK.Unwrap(ctx, blob, bound)
	k.count(keys.OpUnwrap, u.Region, err, start)
	return u, err
}

func (k metered) count(op keys.Op, region string, err error, start time.Time) {
	var remote *keys.Error
	if errors.As(err, &remote) {
		region = remote.Region
	}
	if k.metrics == nil {
		return // a doctor's
	}
	k.metrics.RemoteCall(k.name, region, string(op), keys.ClassOf(err).String(), time.Since(start))
}
