package consensus

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"
)

// BenchmarkPropose measures durable, applied commands.
func BenchmarkPropose(b *testing.B) {
	flushEvery = 0
	for _, members := range []int{1, 3} {
		for _, callers := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("members=%d/callers=%d", members, callers), func(b *testing.B) {
				g := newGroup(b, members, false, func(c *Config) { c.SegmentSize = 0 })
				m := g.leader()
				share(b, callers, func() error {
					_, err := m.Propose(context.Background(), command("name"))
					return err
				})
			})
		}
	}
}

// BenchmarkLog measures the log alone: what a lone caller of Propose cannot go below.
func BenchmarkLog(b *testing.B) {
	l := openSizedLog(b, b.TempDir(), 16<<20)
	defer func() { _ = l.Close() }()
	index := uint64(0)
	for b.Loop() {
		index++
		if err := l.StoreLog(&raft.Log{Index: index, Term: 1, Data: make([]byte, 200)}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadIndex measures reads made linearizable.
func BenchmarkReadIndex(b *testing.B) {
	for _, members := range []int{1, 3} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("members=%d/callers=%d", members, callers), func(b *testing.B) {
				g := newGroup(b, members, false, nil)
				m := g.leader()
				share(b, callers, func() error { return m.ReadIndex(context.Background()) })
			})
		}
	}
}

// share has so many callers do b.N calls.
func share(b *testing.B, callers int, call func() error) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := call(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}
