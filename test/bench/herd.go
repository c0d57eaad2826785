package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/pkg/keys/localkek"
	"kms-plugin.io/test/fakekms"
)

// sealSeeds makes n distinct seeds under k local KEKs, as k instances would have.
func sealSeeds(ctx context.Context, o pluginOptions, n, k int, bundle string) ([]*kmsapi.DecryptRequest, error) {
	awskms.ScrubEnvironment()
	if err := os.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", o.cloud.CredentialsURL("default")); err != nil {
		return nil, err
	}
	kek, err := awskms.New(ctx, awskms.Config{KeyARN: o.arn, Endpoint: o.cloud.URL(), CABundle: bundle})
	if err != nil {
		return nil, err
	}
	var out []*kmsapi.DecryptRequest
	for range k {
		local, secret, err := localkek.Generate(localkek.XAES)
		if err != nil {
			return nil, err
		}
		v, err := keys.WrapVerified(ctx, kek, envelope.MarshalPlain(keys.BlobLocalKEK, secret), keys.NewContext(clusterID, keys.BlobLocalKEK, nil))
		if err != nil {
			return nil, err
		}
		h := &envelope.Header{Suite: envelope.SuiteXAES, Type: keys.BlobLocalKEK, Identity: kek.Identity(), Material: v.Material, Generation: 1,
			Cluster: envelope.ClusterDigest(clusterID), Context: keys.Context(nil).Digest(), LocalKEK: local.ID(), Wrapped: v.Blob}
		raw, err := h.Marshal()
		if err != nil {
			return nil, err
		}
		d := envelope.Digest(raw)
		for i := range n / k {
			sealed, err := local.Seal(keys.Secret(fmt.Sprintf("%032d", i)), d[:])
			if err != nil {
				return nil, err
			}
			out = append(out, &kmsapi.DecryptRequest{Uid: "bench", KeyId: keys.KeyID("prod", h.Facts(clusterID)),
				Ciphertext: envelope.Frame(keys.BlobLocalKEK, sealed), Annotations: map[string][]byte{envelope.AnnotationKey: raw}})
		}
	}
	// Mixed, as a store of Secrets is: in order, each local KEK would be a wave.
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out, nil
}

// herd sends all requests at once over one connection, 3 s each, as
// kube-apiserver would after a start, and counts failures.
func herd(ctx context.Context, t *target, reqs []*kmsapi.DecryptRequest, parallel int) (failed int64, took time.Duration, first error) {
	var n atomic.Int64
	var once sync.Once
	slots := make(chan struct{}, parallel)
	begun := time.Now()
	var wg sync.WaitGroup
	for _, r := range reqs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			if _, err := t.kms.Decrypt(ctx, r); err != nil {
				n.Add(1)
				once.Do(func() { first = err })
			}
		})
	}
	wg.Wait()
	return n.Load(), time.Since(begun), first
}

// herds are cold starts with 10,000 distinct seeds.
func (b *bench) herds(ctx context.Context) error {
	for _, c := range []struct {
		name    string
		k, n    int
		latency time.Duration
		tls     bool
		quota   int
		width   int
	}{
		{"10,000 at once, 1 local KEK, 10 ms", 1, 10000, 10 * time.Millisecond, false, 0, 10000},
		{"10,000 at once, 20 local KEKs, 10 ms", 20, 10000, 10 * time.Millisecond, false, 0, 10000},
		{"10,000 at once, 20 local KEKs, 30 ms, TLS", 20, 10000, 30 * time.Millisecond, true, 0, 10000},
		{"10,000 at once, 20 local KEKs, 10 ms, 1,000/s quota", 20, 10000, 10 * time.Millisecond, false, 1000, 10000},
		{"LIST: 1,000 one by one, 1 local KEK, 10 ms", 1, 1000, 10 * time.Millisecond, false, 0, 1},
	} {
		if err := b.herdOf(ctx, c.name, c.k, c.n, c.latency, c.tls, c.quota, c.width); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

func (b *bench) herdOf(ctx context.Context, name string, k, n int, latency time.Duration, tls bool, quota, width int) error {
	cloud, err := fakekms.Start(fakekms.Config{TLS: tls})
	if err != nil {
		return err
	}
	defer cloud.Close()
	o := pluginOptions{cloud: cloud, arn: cloud.CreateKey("eu-west-1", fakekms.KeyOptions{}), wrapping: "local-kek", tls: tls}
	bundle := ""
	if tls {
		bundle = b.dir + "/herd-ca.pem"
		if err := os.WriteFile(bundle, cloud.CABundlePEM(), 0o600); err != nil {
			return err
		}
	}
	reqs, err := sealSeeds(ctx, o, n, k, bundle)
	if err != nil {
		return err
	}
	p, err := startPlugin(b.dir, b.binary, fmt.Sprintf("h%d", len(b.rows)), o)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := p.seal(ctx); err != nil {
		return err
	}
	f, err := startFloor(b.dir, fmt.Sprintf("hf%d", len(b.rows)))
	if err != nil {
		return err
	}
	defer f.stop()
	idle := p.memory("VmRSS")
	cloud.SetFault(fakekms.Fault{Kind: fakekms.Latency, Latency: latency})
	cloud.SetQuota(quota, quota)
	cloud.ResetCounts()
	_, floorTook, _ := herd(ctx, f, reqs, width)
	if b.gates && width > 1 && floorTook > time.Second {
		// The client alone needs a third of the requests' time: a machine that busy says
		// nothing of the plugin by 10,000.
		reqs = reqs[:int(float64(n)*time.Second.Seconds()/floorTook.Seconds())]
		name = fmt.Sprintf("%s, %d of them", name, len(reqs))
		_, floorTook, _ = herd(ctx, f, reqs, width)
	}
	failed, took, first := herd(ctx, p, reqs, width)
	calls := cloud.Calls()
	remote := calls.Types["Decrypt/local-kek"]
	ratio := 1.10
	if width == 1 {
		ratio = 1.15
	}
	limit := ratio*floorTook.Seconds() + latency.Seconds()
	b.add(Row{Figure: name + ": failures", Value: fmt.Sprint(failed, errText(first)), Target: "0", Met: failed == 0, Gate: true})
	b.add(Row{Figure: name + ": remote calls, connections", Value: fmt.Sprintf("%d, %d", remote, calls.Connections), Target: fmt.Sprintf("%d, ≤ %d", k, k+1), Met: remote == k && calls.Connections <= k+1, Gate: true})
	b.add(Row{Figure: name + ": time", Value: fmt.Sprintf("%d ms for the floor's %d", took.Milliseconds(), floorTook.Milliseconds()),
		Target: fmt.Sprintf("≤ %.2f × and a round trip", ratio), Met: took.Seconds() <= limit})
	if width > 1 && k == 20 && !tls && quota == 0 {
		peak := p.memory("VmHWM")
		b.add(Row{Figure: "resident memory, idle", Value: fmt.Sprintf("%.1f MiB", idle), Target: "≤ 20 MiB", Met: idle <= 20})
		most := 35.0
		if b.gates {
			most = 40 // how much garbage there is at the peak differs by 3 MiB from run to run
		}
		b.add(Row{Figure: "resident memory, peak of the 10,000", Value: fmt.Sprintf("%.1f MiB", peak), Target: fmt.Sprintf("≤ %.0f MiB", most), Met: peak <= most, Gate: true})
	}
	return nil
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return " (" + err.Error() + ")"
}
