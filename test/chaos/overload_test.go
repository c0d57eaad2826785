//go:build e2e

package chaos

import (
	"context"
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/internal/envelope"
	"kms-plugin.io/pkg/keys"
	"kms-plugin.io/pkg/keys/awskms"
	"kms-plugin.io/pkg/keys/localkek"
	"kms-plugin.io/test/fakekms"
)

const clusterID = "chaos"

// sealer makes what instances of this cluster have sealed.
type sealer struct{ kek keys.KEK }

func newSealer(t *testing.T, s *stage) sealer {
	t.Helper()
	for _, name := range awskms.ScrubEnvironment() {
		t.Logf("%s is not used", name)
	}
	s.cloud.AddPrincipal("sealer")
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", s.cloud.CredentialsURL("sealer"))
	kek, err := awskms.New(t.Context(), awskms.Config{KeyARN: s.arn, Endpoint: s.cloud.URL()})
	if err != nil {
		t.Fatal(err)
	}
	return sealer{kek}
}

// stranger is a seed sealed under a local KEK that nobody has met.
func (x sealer) stranger(ctx context.Context) (*kmsapi.DecryptRequest, error) {
	local, secret, err := localkek.Generate(localkek.XAES)
	if err != nil {
		return nil, err
	}
	v, err := keys.WrapVerified(ctx, x.kek, envelope.MarshalPlain(keys.BlobLocalKEK, secret), keys.NewContext(clusterID, keys.BlobLocalKEK, nil))
	if err != nil {
		return nil, err
	}
	return x.request(&envelope.Header{Suite: envelope.SuiteXAES, Type: keys.BlobLocalKEK, Identity: x.kek.Identity(), Material: v.Material, Generation: 1,
		Cluster: envelope.ClusterDigest(clusterID), Context: keys.Context(nil).Digest(), LocalKEK: local.ID(), Wrapped: v.Blob}, local)
}

func (x sealer) request(h *envelope.Header, local *localkek.Key) (*kmsapi.DecryptRequest, error) {
	raw, err := h.Marshal()
	if err != nil {
		return nil, err
	}
	d := envelope.Digest(raw)
	sealed, err := local.Seal(make(keys.Secret, 32), d[:])
	if err != nil {
		return nil, err
	}
	return &kmsapi.DecryptRequest{Uid: "overload", KeyId: keys.KeyID("prod", h.Facts(clusterID)),
		Ciphertext: envelope.Frame(keys.BlobLocalKEK, sealed), Annotations: map[string][]byte{envelope.AnnotationKey: raw}}, nil
}

// hostile is what somebody who writes etcd could put there: well formed, but the blob is
// noise, or that of another local KEK, or of another cluster.
func (x sealer) hostile(good *kmsapi.DecryptRequest, n int) (*kmsapi.DecryptRequest, error) {
	h, err := envelope.Parse(good.Annotations[envelope.AnnotationKey])
	if err != nil {
		return nil, err
	}
	local, _, err := localkek.Generate(localkek.XAES)
	if err != nil {
		return nil, err
	}
	switch h.LocalKEK = local.ID(); n % 3 {
	case 0:
		h.Wrapped = make([]byte, len(h.Wrapped))
		if _, err := rand.Read(h.Wrapped); err != nil {
			return nil, err
		}
	case 1: // the blob of another
	case 2:
		h.Cluster = envelope.ClusterDigest("another")
	}
	return x.request(h, local)
}

// flood is so many requests, half of them hostile, in any order.
func (x sealer) flood(t *testing.T, n int) (good, all []*kmsapi.DecryptRequest) {
	t.Helper()
	good = make([]*kmsapi.DecryptRequest, n/2)
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(8)
	for i := range good {
		g.Go(func() (err error) {
			good[i], err = x.stranger(ctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	all = append(all, good...)
	for i := range n / 2 {
		r, err := x.hostile(good[i], i)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	mrand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return good, all
}

// vitals are what a process holds.
type vitals struct{ rss, peak, goroutines, files int }

func (s *stage) vitals(i int) (v vitals) {
	s.t.Helper()
	pid := strconv.Itoa(s.p[i].PID())
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &v.rss) // other lines are not these
		_, _ = fmt.Sscanf(line, "VmHWM: %d kB", &v.peak)
	}
	files, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		s.t.Fatal(err)
	}
	v.files = len(files)
	text, err := s.p[i].Get(s.t.Context(), "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		_, _ = fmt.Sscanf(line, "go_goroutines %d", &v.goroutines)
	}
	return v
}

// served counts one kind of call beside a flood.
type served struct {
	n, failed atomic.Int64
	mu        sync.Mutex
	slowest   time.Duration
	first     error
}

func (r *served) call(ctx context.Context, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	begun := time.Now()
	err := f(ctx)
	r.n.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slowest = max(r.slowest, time.Since(begun))
	if err != nil {
		r.failed.Add(1)
		if r.first == nil {
			r.first = err
		}
	}
}

func (r *served) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("%d, %d failed, slowest %s (%v)", r.n.Load(), r.failed.Load(), r.slowest.Round(time.Millisecond), r.first)
}

// 10,000 Decrypts of unknown local KEKs at once, half of them hostile, over the one
// connection of an API server, where what exceeds the streams waits in line: Status and
// what is known pass, memory stays bounded, and nothing is left when their time is up.
func TestOverload(t *testing.T) {
	for name, fault := range map[string]fakekms.Fault{
		"KMS answers in 10 ms": {Kind: fakekms.Latency, Latency: 10 * time.Millisecond},
		"KMS is silent":        {Kind: fakekms.Hang, AfterEffect: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := emptyStage(t, 1)
			s.addPlugin(0)
			x := newSealer(t, s)
			within(t, 20*time.Second, "ready", s.shows(0, "kms_plugin_ready 1"))
			kms := kmsapi.NewKeyManagementServiceClient(dialWire(t, s.p[0].Socket))
			known, err := x.stranger(t.Context())
			if err == nil {
				_, err = kms.Decrypt(t.Context(), known)
			}
			if err != nil {
				t.Fatal(err)
			}
			good, all := x.flood(t, 10_000)
			before := s.vitals(0)
			s.cloud.SetFault(fault)
			var status, open, unknown served
			ctx, stop := context.WithCancel(t.Context())
			var beside, wave sync.WaitGroup
			for range 4 {
				beside.Go(func() {
					for ctx.Err() == nil {
						status.call(t.Context(), func(ctx context.Context) error {
							_, err := kms.Status(ctx, &kmsapi.StatusRequest{})
							return err
						})
						open.call(t.Context(), func(ctx context.Context) error {
							_, err := kms.Decrypt(ctx, known)
							return err
						})
					}
				})
			}
			begun := time.Now()
			for _, r := range all {
				wave.Go(func() {
					unknown.call(t.Context(), func(ctx context.Context) error {
						_, err := kms.Decrypt(ctx, r)
						return err
					})
				})
			}
			wave.Wait()
			took := time.Since(begun)
			stop()
			beside.Wait()
			after := s.vitals(0)
			t.Logf("flood: %s, in %s; Status: %s; known: %s; before %+v, after %+v", &unknown, took.Round(time.Millisecond), &status, &open, before, after)
			for what, r := range map[string]*served{"Status": &status, "Decrypt of a known local KEK": &open} {
				if r.failed.Load() > 0 || r.n.Load() < 8 {
					t.Errorf("%s beside the flood: %s", what, r)
				}
			}
			if took > 8*time.Second { // 3 s each, and until the last was sent
				t.Errorf("the last of them was answered after %s", took)
			}
			if after.peak > 96<<10 {
				t.Errorf("%d KiB at the peak, want at most 96 MiB", after.peak)
			}
			s.cloud.ClearFaults()
			within(t, 10*time.Second, "nothing of it is left", func(context.Context) error {
				if v := s.vitals(0); v.goroutines > before.goroutines+256 { // connections to the KMS that may be used again
					return fmt.Errorf("%d goroutines, %d before", v.goroutines, before.goroutines)
				}
				return nil
			})
			within(t, 15*time.Second, "what is genuine opens", func(ctx context.Context) error {
				for _, r := range good[:20] {
					if _, err := kms.Decrypt(ctx, r); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
}
