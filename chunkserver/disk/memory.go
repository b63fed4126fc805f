package disk

import (
	"context"
	"fmt"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/mem"
)

// Memory is a pool of buffers for reads. It may bound how much of them is out at once, replies on their way to slow clients
// included. It does not clear buffers: a read overwrites all that it hands out.
//
// gRPC forgets some replies of a connection that breaks without giving them back. These count until the garbage collector
// finds them.
type Memory struct {
	limit     int64
	sem       *semaphore.Weighted // nil: no limit
	collected atomic.Int64        // when the collector was last asked for, nanoseconds since 1970
	tiers     [maxTier - minTier + 1]sync.Pool
}

const (
	minTier = 12 // 4 KiB
	maxTier = 20 // 1 MiB

	// minMemory is what the largest read may need: each of its buffers is less than twice what it holds.
	minMemory = 32 << 20
)

// NewMemory makes a pool with a limit in bytes; 0: none.
func NewMemory(limit int64) *Memory {
	m := &Memory{}
	if limit > 0 {
		m.limit = max(limit, minMemory)
		m.sem = semaphore.NewWeighted(m.limit)
	}
	return m
}

func tier(n int) int { return min(max(bits.Len(uint(n-1)), minTier), maxTier) - minTier }

func tierSize(n int) int64 { return 1 << (tier(n) + minTier) }

// acquire waits until the buffers of these sizes, each at most 1 MiB, may be taken, and returns them.
func (m *Memory) acquire(ctx context.Context, sizes []int) ([]*[]byte, error) {
	if m.sem != nil {
		var total int64
		for _, n := range sizes {
			total += tierSize(n)
		}
		if total > m.limit {
			return nil, fmt.Errorf("disk: a read needs %d bytes of buffers, the limit is %d", total, m.limit)
		}
		if err := m.wait(ctx, total); err != nil {
			return nil, err
		}
	}
	bufs := make([]*[]byte, len(sizes))
	for i, n := range sizes {
		b, _ := m.tiers[tier(n)].Get().(*[]byte)
		if b == nil {
			s := make([]byte, tierSize(n))
			b = &s
		}
		*b = (*b)[:n]
		bufs[i] = b
	}
	return bufs, nil
}

// collectAfter is how long a read waits for memory before it has what gRPC forgot looked for; the next time at the earliest
// as long after.
const collectAfter = time.Second

func (m *Memory) wait(ctx context.Context, n int64) error {
	if m.sem.TryAcquire(n) {
		return nil
	}
	t := time.AfterFunc(collectAfter, func() {
		now, last := time.Now().UnixNano(), m.collected.Load()
		if now-last >= int64(collectAfter) && m.collected.CompareAndSwap(last, now) {
			runtime.GC()
		}
	})
	defer t.Stop()
	return m.sem.Acquire(ctx, n)
}

// lease is the pool that one buffer goes back to.
type lease struct {
	*Memory
	forgotten runtime.Cleanup
}

// buffer makes a mem.Buffer of a buffer of acquire. When nothing refers to it any more it counts no more, freed or not.
func (m *Memory) buffer(b *[]byte) mem.Buffer {
	l := &lease{Memory: m}
	if m.sem != nil {
		l.forgotten = runtime.AddCleanup(l, m.sem.Release, int64(cap(*b)))
	}
	return mem.NewBuffer(b, l)
}

// Put implements mem.BufferPool.
func (l *lease) Put(b *[]byte) {
	l.forgotten.Stop()
	l.Memory.Put(b)
	runtime.KeepAlive(l) // until here it was not forgotten
}

// Get exists to make Memory a mem.BufferPool; nothing here takes buffers that way.
func (m *Memory) Get(n int) *[]byte {
	b := make([]byte, n)
	return &b
}

// Put takes a buffer of acquire back.
func (m *Memory) Put(b *[]byte) {
	n := cap(*b)
	*b = (*b)[:n]
	m.tiers[tier(n)].Put(b)
	if m.sem != nil {
		m.sem.Release(int64(n))
	}
}

var _ mem.BufferPool = (*Memory)(nil)
