package rotation

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// pace keeps the latency of the API sane: it halves the rate when a write is
// slow or refused, and comes back by a fiftieth of the limit a write.
type pace struct {
	*rate.Limiter
	mu    sync.Mutex
	most  float64
	slow  time.Duration
	least float64
}

const slowWrite = 500 * time.Millisecond

func newPace(qps float64) *pace {
	return &pace{Limiter: rate.NewLimiter(rate.Limit(qps), workers), most: qps, slow: slowWrite, least: min(1, qps)}
}

func (p *pace) wait(ctx context.Context) error { return p.Wait(ctx) }

func (p *pace) took(d time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := float64(p.Limit())
	if d > p.slow || err != nil && !apierrors.IsNotFound(err) {
		now = max(now/2, p.least)
	} else {
		now = min(now+p.most/50, p.most)
	}
	p.SetLimit(rate.Limit(now))
}
