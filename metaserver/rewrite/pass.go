package rewrite

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// pass is jobs that belong together.
type pass struct {
	e    *Engine
	ctx  context.Context
	g    *errgroup.Group
	done func(b *batch, err error) // told how a job ended; nil: nobody wants to know

	mu      sync.Mutex
	moved   uint64
	failed  int
	blocked map[chunk.Layout]error // what cannot be made now
}

func (e *Engine) newPass(ctx context.Context) *pass {
	p := &pass{e: e, blocked: map[chunk.Layout]error{}}
	p.g, p.ctx = errgroup.WithContext(ctx)
	return p
}

// emit does a job when there is room for it. Errors of jobs are logged, and end nothing but them; only those of ctx are returned.
func (p *pass) emit(ctx context.Context, b *batch) error {
	p.mu.Lock()
	err := p.blocked[b.want]
	p.mu.Unlock()
	if err != nil { // it would not fare better
		p.ended(b, 0, err)
		return nil
	}
	weight := int64(max(b.bytes, bytesAtOnce/jobsAtOnce))
	if err := p.e.room.Acquire(ctx, weight); err != nil {
		return err
	}
	if err := p.e.idle(ctx); err != nil {
		p.e.room.Release(weight)
		return err
	}
	p.g.Go(func() error {
		defer p.e.room.Release(weight)
		moved, err := p.e.do(p.ctx, b)
		p.ended(b, moved, err)
		return nil
	})
	return nil
}

// ended notes how a job ended.
func (p *pass) ended(b *batch, moved uint64, err error) {
	p.mu.Lock()
	p.moved += moved
	if err != nil {
		p.failed++
	}
	again := p.blocked[b.want] != nil
	if errors.Is(err, errWait) {
		p.blocked[b.want] = err
	}
	p.mu.Unlock()
	p.e.count(moved, err)
	switch {
	case err == nil || p.ctx.Err() != nil:
	case !errors.Is(err, errWait):
		p.e.log.Warn("data could not be rewritten; it stays where it is, and is tried again later", "error", err)
	case !again:
		p.e.log.Debug("data cannot be rewritten now", "error", err)
	}
	if p.done != nil {
		p.done(b, err)
	}
}

// wait returns when all jobs have ended. It may be called again.
func (p *pass) wait() (moved uint64, failed int) {
	_ = p.g.Wait() // jobs return no errors
	p.mu.Lock()
	defer p.mu.Unlock()
	blocked := ""
	for _, err := range p.blocked {
		blocked = err.Error()
	}
	p.e.setBlocked(blocked)
	return p.moved, p.failed
}

// idle waits while there is something more urgent than rewriting.
func (e *Engine) idle(ctx context.Context) error {
	for {
		why := e.cluster.Busy()
		e.setBusy(why)
		if why == "" {
			return nil
		}
		select {
		case <-time.After(tick):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
