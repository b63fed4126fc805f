package chunkserver

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestOrdersRepeated gives one order again and again, while it waits, while it runs, and when it is done.
func TestOrdersRepeated(t *testing.T) {
	m, s := one(t)
	f := newSource(t)
	data := random(1 << 20)
	var orders []*pb.CopyOrder
	for id := range chunk.ID(copiesAtOnce + 2) {
		f.holdAll(id+1, copies2, data)
		orders = append(orders, f.order(id+1, copies2, len(data), copies2, 0))
	}
	gate, open := newGate(t)
	f.set(func(*pb.ReadRequest, []byte) error { <-gate; return nil })
	for range 10 {
		m.order(t, s, &pb.HeartbeatReply{Copies: orders})
	}
	m.until(t, "copies run", func() bool { _, n := s.copies.count(); return n == copiesAtOnce })
	if queued, _ := s.copies.count(); queued != 2 {
		t.Errorf("%d are queued", queued)
	}
	// A source that fails while an order waits is replaced by the next order.
	orders[copiesAtOnce+1].Servers[0].Address = "127.0.0.1:1"
	m.order(t, s, &pb.HeartbeatReply{Copies: orders, WantInventory: true})
	m.mu.Lock()
	before := m.complete
	m.mu.Unlock()
	m.until(t, "the order arrives", func() bool { return m.complete > before })
	open()
	for _, o := range orders {
		if r := m.result(t, o.Stored); r.Error != "" || r.Bytes != 1<<20 {
			t.Errorf("%v", r)
		}
	}
	if got := len(f.asked(0)); got != len(orders) {
		t.Errorf("%d reads for %d orders", got, len(orders))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, rest := range m.copied {
		if len(rest) > 0 {
			t.Errorf("chunk %x was answered more than once: %v", id, rest)
		}
	}
}

// TestDeletionAndCopy orders a deletion and a copy of the same chunk, either first.
func TestDeletionAndCopy(t *testing.T) {
	m, s := one(t)
	f := newSource(t)
	data := random(1 << 20)
	f.holdAll(1, copies2, data)
	o := f.order(1, copies2, len(data), copies2, 0)
	mustCopy(t, m, s, o)
	for i := range 20 {
		m.order(t, s, &pb.HeartbeatReply{Delete: []uint64{1}, Copies: []*pb.CopyOrder{o}})
		if r := m.result(t, 1); r.Error != "" || r.Bytes == 0 {
			t.Fatalf("a copy ordered behind a deletion was not made after it: %v", r)
		}
		m.until(t, "the deletion", func() bool { return m.deleted[1] == i+1 })
		mustHold(t, s, 1, data)
	}
	f.holdAll(2, copies2, data)
	begun := make(chan struct{}, 10)
	gate, open := newGate(t)
	f.set(func(*pb.ReadRequest, []byte) error { begun <- struct{}{}; <-gate; return nil })
	m.order(t, s, &pb.HeartbeatReply{Copies: []*pb.CopyOrder{f.order(2, copies2, len(data), copies2, 0)}})
	<-begun
	m.order(t, s, &pb.HeartbeatReply{Delete: []uint64{2}})
	if r := m.result(t, 2); !strings.Contains(r.Error, "deleted") {
		t.Errorf("%v", r)
	}
	m.until(t, "the deletion", func() bool { return m.deleted[2] == 1 })
	open()
	if s.store.find(2) != nil {
		t.Error("a copy was kept whose deletion was ordered later")
	}
}

// TestOldTerm: nothing that a deposed leader says counts, and a new stream begins with nothing.
func TestOldTerm(t *testing.T) {
	m, s := one(t)
	f := newSource(t)
	data := random(1000)
	f.holdAll(1, copies2, data)
	f.holdAll(2, copies2, data)
	one, two := f.order(1, copies2, len(data), copies2, 0), f.order(2, copies2, len(data), copies2, 0)
	m.order(t, s, &pb.HeartbeatReply{Term: 7, Copies: []*pb.CopyOrder{one}})
	m.result(t, 1)
	m.order(t, s, &pb.HeartbeatReply{Term: 6, Copies: []*pb.CopyOrder{two}, Delete: []uint64{1}, Check: []uint64{77}, CopyRate: 1})
	m.order(t, s, &pb.HeartbeatReply{Term: 7, Delete: []uint64{99}})
	m.until(t, "the newer leader's order", func() bool { return m.deleted[99] == 1 })
	if s.store.find(2) != nil || s.store.find(1) == nil || m.corrupt[77] {
		t.Error("an older leader was obeyed")
	}
	if q, r := s.copies.count(); q+r != 0 {
		t.Error("an older leader's copy is queued")
	}

	gate, open := newGate(t)
	f.set(func(*pb.ReadRequest, []byte) error { <-gate; return nil })
	var many []*pb.CopyOrder
	for id := range chunk.ID(copiesAtOnce + 3) {
		f.holdAll(id+10, copies2, data)
		many = append(many, f.order(id+10, copies2, len(data), copies2, 0))
	}
	m.order(t, s, &pb.HeartbeatReply{Term: 7, Copies: many})
	m.until(t, "copies run", func() bool { q, r := s.copies.count(); return q == 3 && r == copiesAtOnce })
	s.orders.mu.Lock()
	old := s.orders.stream
	s.orders.mu.Unlock()
	s.follow(&beater{s: s.Server})
	s.obey(old, &pb.HeartbeatReply{Term: 8, Copies: many, Delete: []uint64{1}}) // which arrives late
	if q, _ := s.copies.count(); q != 0 || s.deletions.has(1) || s.orders.term != 7 {
		t.Error("a stream that was given up is obeyed, or its orders stay")
	}
	open()
	for _, o := range many[:copiesAtOnce] {
		if r := m.result(t, o.Stored); r.Error != "" {
			t.Errorf("%v", r)
		}
	}
}

// TestBadOrders: what makes no sense is answered with an error.
func TestBadOrders(t *testing.T) {
	m, s := one(t)
	f := newSource(t)
	data := random(10_000)
	for i, change := range []func(*pb.CopyOrder){
		func(o *pb.CopyOrder) { o.Source = nil },
		func(o *pb.CopyOrder) { o.Layout = nil },
		func(o *pb.CopyOrder) { o.Layout.Cell = 3 },
		func(o *pb.CopyOrder) { o.Shard = 6 },
		func(o *pb.CopyOrder) { o.Shard = 1 << 31 },
		func(o *pb.CopyOrder) { o.Stored++; o.Stored |= 1 << 45 },
		func(o *pb.CopyOrder) { o.Length = 0 },
		func(o *pb.CopyOrder) { o.Length++ },
		func(o *pb.CopyOrder) { o.Length += 4096 },
		func(o *pb.CopyOrder) { o.Length = 1 << 60 },
		func(o *pb.CopyOrder) { o.Source.Layout = nil },
		func(o *pb.CopyOrder) { o.Source.Length = 0 },
		func(o *pb.CopyOrder) { o.Source.Servers = o.Source.Servers[:3] },
		func(o *pb.CopyOrder) { o.Servers = nil },
	} {
		o := f.order(chunk.ID(i+1), ec42, len(data), ec42, 3)
		change(o)
		m.order(t, s, &pb.HeartbeatReply{Copies: []*pb.CopyOrder{o}})
		if r := m.result(t, o.Stored); r.Error == "" {
			t.Errorf("order %d: %v was obeyed", i, o)
		}
	}
}

// TestThrottle counts what passes in the time of a bubble.
func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		th := newThrottle()
		th.set(4 << 20)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for th.wait(ctx, chunk.MaxFrame) == nil {
				}
			})
		}
		check := func(d time.Duration, least, most uint64) {
			t.Helper()
			before := th.taken.Load()
			time.Sleep(d)
			if got := th.taken.Load() - before; got < least || got > most {
				t.Errorf("%d bytes passed in %v, want %d to %d", got, d, least, most)
			}
		}
		check(10*time.Second, 39<<20, 44<<20) // and what is taken in advance
		th.set(1)
		time.Sleep(5 * time.Second)
		check(time.Hour, 0, 0)
		th.set(8 << 20) // those who wait notice
		check(10*time.Second, 70<<20, 84<<20)
		cancel()
		wg.Wait()
	})
}

// TestHeartbeatsAsOftenAsWanted: the metaserver says how often it wants to hear of a server, which may be more often than that would.
func TestHeartbeatsAsOftenAsWanted(t *testing.T) {
	m := newMeta(t)
	s := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{m.srv.Address()}, Heartbeat: time.Hour})
	s.awaitReady(t)
	m.order(t, s, &pb.HeartbeatReply{Term: 1, EveryMs: 20})
	var before int
	m.update(func() { before = m.beats })
	m.until(t, "heartbeats", func() bool { return m.beats >= before+5 })
}
