package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	kmsapi "k8s.io/kms/apis/v2"

	"kms-plugin.io/test/fakekms"
)

// figure is what one target did in one round.
type figure struct{ p50, p99, cpu, rate float64 }

type method struct {
	name string
	call func(ctx context.Context, t *target) error
}

var methods = []method{
	{"Encrypt", func(ctx context.Context, t *target) error {
		_, err := t.kms.Encrypt(ctx, &kmsapi.EncryptRequest{Plaintext: []byte(seed), Uid: "bench"})
		return err
	}},
	{"Decrypt", func(ctx context.Context, t *target) error {
		e := t.sealed
		_, err := t.kms.Decrypt(ctx, &kmsapi.DecryptRequest{Ciphertext: e.Ciphertext, KeyId: e.KeyId, Annotations: e.Annotations, Uid: "bench"})
		return err
	}},
	{"Status", func(ctx context.Context, t *target) error {
		_, err := t.kms.Status(ctx, &kmsapi.StatusRequest{})
		return err
	}},
}

// timing interleaves the plugin, the floor and the floor again.
func (b *bench) timing(ctx context.Context) error {
	cloud, err := fakekms.Start(fakekms.Config{})
	if err != nil {
		return err
	}
	defer cloud.Close()
	var targets [3]*target
	defer func() {
		for _, t := range targets {
			t.stop()
		}
	}()
	if targets[0], err = startPlugin(b.dir, b.binary, "plugin", pluginOptions{cloud: cloud, arn: cloud.CreateKey("eu-west-1", fakekms.KeyOptions{}), wrapping: "local-kek"}); err != nil {
		return err
	}
	for i, name := range []string{"floor", "floor2"} {
		if targets[i+1], err = startFloor(b.dir, name); err != nil {
			return err
		}
	}
	for _, t := range targets {
		if err := t.seal(ctx); err != nil {
			return err
		}
		t.sealed.Annotations = map[string][]byte{}
	}
	// The floor gets requests of the same size.
	if err := targets[0].seal(ctx); err != nil {
		return err
	}
	for _, t := range targets[1:] {
		t.sealed = targets[0].sealed
	}
	for _, m := range methods {
		if err := b.sequential(ctx, m, targets); err != nil {
			return err
		}
		if m.name != "Status" {
			if err := b.parallel(ctx, m, targets, 8); err != nil {
				return err
			}
			if err := b.parallel(ctx, m, targets, 64); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) sequential(ctx context.Context, m method, targets [3]*target) error {
	const calls = 1500
	var got [3][]figure
	for range b.rounds {
		for i, t := range targets {
			times := make([]float64, 0, calls)
			for range calls {
				begun := time.Now()
				if err := m.call(ctx, t); err != nil {
					return fmt.Errorf("%s of %s: %w", m.name, t.name, err)
				}
				times = append(times, float64(time.Since(begun).Nanoseconds())/1000)
			}
			slices.Sort(times)
			got[i] = append(got[i], figure{p50: times[calls/2], p99: times[calls*99/100]})
		}
	}
	b.ratio(m.name+", one by one, p50", got, func(f figure) float64 { return f.p50 }, 1.05, true)
	if m.name != "Status" {
		b.ratio(m.name+", one by one, p99", got, func(f figure) float64 { return f.p99 }, 1.10, true)
	}
	return nil
}

func (b *bench) parallel(ctx context.Context, m method, targets [3]*target, callers int) error {
	const during = 700 * time.Millisecond
	var got [3][]figure
	for range b.rounds {
		for i, t := range targets {
			var n atomic.Int64
			var failed atomic.Pointer[error]
			cpu, begun := t.cpu(), time.Now()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for time.Since(begun) < during {
						if err := m.call(ctx, t); err != nil {
							failed.Store(&err)
							return
						}
						n.Add(1)
					}
				})
			}
			wg.Wait()
			if err := failed.Load(); err != nil {
				return fmt.Errorf("%s of %s: %w", m.name, t.name, *err)
			}
			calls := float64(n.Load())
			got[i] = append(got[i], figure{cpu: float64((t.cpu() - cpu).Microseconds()) / calls, rate: calls / time.Since(begun).Seconds()})
		}
	}
	b.ratio(fmt.Sprintf("%s, %d callers, CPU per call", m.name, callers), got, func(f figure) float64 { return f.cpu }, 0.90, true)
	if callers == 64 {
		b.ratio(fmt.Sprintf("%s, %d callers, calls per second", m.name, callers), got, func(f figure) float64 { return f.rate }, 0.95, false)
	}
	return nil
}

// ratio reports the median over rounds of plugin / floor, and of floor / floor.
func (b *bench) ratio(name string, got [3][]figure, of func(figure) float64, target float64, most bool) {
	var ours, noise []float64
	for i := range got[0] {
		ours = append(ours, of(got[0][i])/of(got[1][i]))
		noise = append(noise, of(got[2][i])/of(got[1][i]))
	}
	r := median(ours)
	sign := "≤"
	if !most {
		sign = "≥"
	}
	b.add(Row{Figure: name, Ratio: r, Target: fmt.Sprintf("%s %.2f ×", sign, target), Met: most && r <= target || !most && r >= target,
		Value: span(ours), Noise: span(noise)})
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func span(v []float64) string {
	return fmt.Sprintf("%.2f × [%.2f..%.2f]", median(v), slices.Min(v), slices.Max(v))
}
