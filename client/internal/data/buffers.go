package data

import (
	"container/list"
	"context"
	"math/bits"
	"sync"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// Sizes of write buffers: 4 KiB, 16 KiB, 64 KiB, 256 KiB and 1 MiB.
const (
	smallestBuffer = 4 << 10
	largestBuffer  = chunk.MaxFrame
	bufferClasses  = 5
)

// budget is a number of bytes that may be in use. Those who wait for some are served in order.
type budget struct {
	mu      sync.Mutex
	free    int64 // may be negative after take
	size    int64
	waiting list.List // of *waiter
}

type waiter struct {
	n     int64
	ready chan struct{}
}

// try takes n bytes if nobody waits and they are free.
func (b *budget) try(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.free < n || b.waiting.Len() > 0 {
		return false
	}
	b.free -= n
	return true
}

// take takes n bytes though they may not be free: the caller is about to give back as much.
func (b *budget) take(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free -= n
}

// relieveEvery is how often one who waits for memory looks for some that others do not need.
const relieveEvery = 100 * time.Millisecond

// acquire waits for n bytes. wait is called while there are none, again and again: who was given some just before may hold
// it without need by now.
func (b *budget) acquire(ctx context.Context, n int64, wait func(n int64)) error {
	b.mu.Lock()
	if b.free >= n && b.waiting.Len() == 0 {
		b.free -= n
		b.mu.Unlock()
		return nil
	}
	w := &waiter{n: n, ready: make(chan struct{})}
	e := b.waiting.PushBack(w)
	b.mu.Unlock()
	again := time.NewTicker(relieveEvery)
	defer again.Stop()
	for done := false; !done; {
		if wait != nil {
			wait(n)
		}
		select {
		case <-w.ready:
			return nil
		case <-again.C:
		case <-ctx.Done():
			done = true
		}
	}
	b.mu.Lock()
	select {
	case <-w.ready: // served at the last moment
		b.free += n
	default:
		b.waiting.Remove(e)
	}
	b.serve()
	b.mu.Unlock()
	return ctx.Err()
}

func (b *budget) release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	b.serve()
}

// short tells whether bytes are waited for, or soon will be.
func (b *budget) short() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting.Len() > 0 || b.free < b.size/4
}

func (b *budget) serve() {
	for e := b.waiting.Front(); e != nil; e = b.waiting.Front() {
		w := e.Value.(*waiter)
		if b.free < w.n {
			return
		}
		b.free -= w.n
		close(w.ready)
		b.waiting.Remove(e)
	}
}

func (b *budget) used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size - b.free
}

// buffers hands out write buffers within a budget. A buffer counts until Put, or, once it belongs to a frame, until the frame
// gives it up. References that gRPC holds beyond that do not count: it drops some of a cancelled stream without freeing
// them, and never has more than a message or two of a stream.
type buffers struct {
	budget  budget
	relieve func(need int64)
	pools   recycler
}

// recycler keeps buffers of the powers of two from smallestBuffer to largestBuffer for the next one who needs one of that
// size. It is the mem.BufferPool of frames, of their shards, and of what is put together of shards.
type recycler [2*bufferClasses - 1]sync.Pool

func newBuffers(size int64, relieve func(int64)) *buffers {
	return &buffers{budget: budget{free: size, size: size}, relieve: relieve}
}

// classOf returns the smallest class that holds n bytes.
func classOf(n int) int {
	class := 0
	for size := smallestBuffer; size < n && class < bufferClasses-1; size <<= 2 {
		class++
	}
	return class
}

func classSize(class int) int { return smallestBuffer << (2 * class) }

// get waits for a buffer of at least n bytes (at most largestBuffer); all of its capacity may be used.
func (p *buffers) get(ctx context.Context, n int) (*[]byte, error) {
	class := classOf(n)
	if err := p.budget.acquire(ctx, int64(classSize(class)), p.relieve); err != nil {
		return nil, err
	}
	return p.make(class), nil
}

// force returns a buffer of n bytes (at most largestBuffer) without waiting, beyond the budget if need be.
func (p *buffers) force(n int) *[]byte {
	b := p.pools.Get(n)
	p.budget.take(int64(cap(*b)))
	return b
}

func (p *buffers) make(class int) *[]byte { return p.pools.Get(classSize(class)) }

// Put takes a buffer back.
func (p *buffers) Put(b *[]byte) {
	size := cap(*b)
	p.pools.Put(b)
	p.budget.release(int64(size))
}

// Get implements mem.BufferPool. What is larger than largestBuffer is not kept.
func (r *recycler) Get(n int) *[]byte {
	if n > largestBuffer {
		s := make([]byte, n)
		return &s
	}
	i := bits.Len(uint(max(n, 1)-1) / smallestBuffer)
	b, ok := r[i].Get().(*[]byte)
	if !ok {
		s := make([]byte, smallestBuffer<<i)
		b = &s
	}
	*b = (*b)[:n]
	return b
}

// Put implements mem.BufferPool.
func (r *recycler) Put(b *[]byte) {
	*b = (*b)[:cap(*b)]
	if n := len(*b); n <= largestBuffer {
		r[bits.Len(uint(n/smallestBuffer))-1].Put(b)
	}
}

// buffer returns n bytes and the Buffer that they are, to be filled before anybody else refers to it.
func (r *recycler) buffer(n int) (mem.Buffer, []byte) {
	b := r.Get(n)
	return mem.NewBuffer(b, r), *b
}

var _ mem.BufferPool = (*recycler)(nil)
