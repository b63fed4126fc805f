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

// newThrottle makes one without a limit.
func newThrottle() *throttle { return &throttle{limit: rate.NewLimiter(rate.Inf, chunk.MaxFrame)} }

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

// throttlePause is how long at most something waits until it looks whether the rate has changed.
const throttlePause = time.Second

// wait returns when n bytes may pass, or with the error of ctx.
func (t *throttle) wait(ctx context.Context, n int) error {
	for n > 0 {
		step := min(n, chunk.MaxFrame) // no more can be saved up
		r := t.limit.ReserveN(time.Now(), step)
		d := r.Delay()
		if d > throttlePause {
			r.Cancel() // others are not kept waiting for what this one may not get
			d = throttlePause
		} else {
			n -= step
			t.taken.Add(uint64(step))
		}
		if d > 0 && !wait(ctx, d) {
			return ctx.Err()
		}
	}
	return ctx.Err()
}
