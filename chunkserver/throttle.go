package chunkserver

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// throttle bounds the bytes that pass in a second, all users together. Its rate may change at any time.
type throttle struct {
	limit *rate.Limiter
	taken atomic.Uint64 // bytes that were let through
}

const (
	// throttleSaved is how many bytes may pass at once when little passed before.
	throttleSaved = 4 << 20
	// throttlePause is how long at most something waits until it looks whether the rate has changed.
	throttlePause = time.Second
)

// newThrottle makes one without a limit.
func newThrottle() *throttle { return &throttle{limit: rate.NewLimiter(rate.Inf, throttleSaved)} }

// set changes the rate, bytes a second; 0: no limit.
func (t *throttle) set(bytes uint64) {
	to := rate.Limit(math.Inf(1))
	if bytes > 0 {
		to = rate.Limit(bytes)
	}
	if t.limit.Limit() != to {
		t.limit.SetLimit(to)
	}
}

// wait returns when n bytes may pass, or with the error of ctx. It asks again and again instead of reserving what it waits for:
// the rate may change, and a reservation that is given up is not always given back.
func (t *throttle) wait(ctx context.Context, n int) error {
	for n > 0 && ctx.Err() == nil {
		step := min(n, chunk.MaxFrame)
		now := time.Now()
		if t.limit.AllowN(now, step) {
			t.taken.Add(uint64(step))
			n -= step
			continue
		}
		lack := (float64(step) - t.limit.TokensAt(now)) / float64(t.limit.Limit()) // seconds
		wait(ctx, min(throttlePause, time.Duration(lack*float64(time.Second))+time.Millisecond))
	}
	return ctx.Err()
}
