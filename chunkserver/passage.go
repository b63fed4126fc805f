package chunkserver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// clientsLinger is how long after a client's last request clients count as being served.
	clientsLinger = time.Second
	// passageHold bounds how long one frame has the passage, and how long it rests after one: what waits for a hanging disk keeps
	// nothing else back.
	passageHold = 250 * time.Millisecond
	// passageRest is which part of the time that a frame took the passage rests for. test/bench/repair shows what it does.
	passageRest = 4
)

// passage is what copies go through frame by frame. While clients are served it takes one frame at a time and then rests for a
// fraction of what that took, so that clients get most of what there is, be it of the disks, the network or the processors.
// Otherwise all pass at once.
type passage struct {
	clients atomic.Int64  // nanoseconds since 1970: when a client was last served
	taken   chan struct{} // 1
}

func newPassage() *passage { return &passage{taken: make(chan struct{}, 1)} }

// client notes that a client is served.
func (p *passage) client() {
	if now := time.Now().UnixNano(); now-p.clients.Load() > int64(clientsLinger/16) { // or all processors would write it all the time
		p.clients.Store(now)
	}
}

// beside tells whether clients are being served.
func (p *passage) beside() bool {
	return time.Now().UnixNano()-p.clients.Load() < int64(clientsLinger)
}

// enter waits until a frame may pass. leave is to be called once it has.
func (p *passage) enter(ctx context.Context) (leave func(), err error) {
	if !p.beside() {
		return func() {}, ctx.Err()
	}
	select {
	case p.taken <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	free := sync.OnceFunc(func() { <-p.taken })
	began, late := time.Now(), time.AfterFunc(passageHold, free)
	return func() {
		if late.Stop() {
			time.AfterFunc(min(time.Since(began)/passageRest, passageHold), free)
		}
	}, nil
}
