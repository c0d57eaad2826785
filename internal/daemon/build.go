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
)

// build makes the ring that a configuration describes: offline, no call to any
// KMS. KEKs of the ring before are taken over where nothing about them changed,
// so that their connections and credentials live on.
func build(ctx context.Context, c *config.Config, m *metrics.Metrics, before map[string]keys.KEK) (*keys.Ring, map[string]keys.KEK, config.Problems) {
	var problems config.Problems
	var entries []keys.Entry
	keks := map[string]keys.KEK{}
	for i, k := range c.Keys {
		kek, ok := before[k.Fingerprint()]
		if !ok || k.LocalFile != nil { // a keyset may have new keys under the same path
			var err error
			if kek, err = provider(ctx, k); err != nil {
				problems = append(problems, problemOf(c, fmt.Sprintf("keys[%d]", i), k.Name, err))
				continue
			}
			kek = metered{KEK: kek, name: k.Name, metrics: m}
		}
		keks[k.Fingerprint()] = kek
		entries = append(entries, keys.Entry{Name: k.Name, Role: k.Role, ActivateAt: k.ActivateAt,
			Generation: k.Generation, KEK: kek, Context: encryptionContext(k)})
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

func provider(ctx context.Context, k config.Key) (keys.KEK, error) {
	switch {
	case k.AWSKMS != nil:
		return awskms.New(ctx, awskms.Config{KeyARN: k.AWSKMS.KeyARN, Endpoint: k.AWSKMS.Endpoint,
			AllowStaticCredentials: k.AWSKMS.AllowStaticCredentials, CABundle: k.AWSKMS.CABundle, Proxy: k.AWSKMS.Proxy})
	case k.LocalFile != nil:
		return localfile.New(k.LocalFile.Path)
	}
	return nil, errors.New("no provider")
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
	k.metrics.RemoteCall(k.name, region, string(op), keys.ClassOf(err).String(), time.Since(start))
}
