package metaserver

import (
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestDeletionsThatFail: deletions that a server cannot do, those on a disk that takes no more changes, say, keep it from none
// of the others.
func TestDeletionsThatFail(t *testing.T) {
	w := newRace(t, 1)
	c := w.clients[0]
	const chunks = 3 * maxDeletions
	for n := 0; n < chunks; n += 250 {
		if errno := w.do(c, c.session, &pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 250, Layout: chunk.Copies(5).Proto(), Candidates: w.candidates()}}}); errno != 0 {
			t.Fatal(errno)
		}
	}
	w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{c.session}}}})
	w.clock++ // so that the deletions are older than the newest command
	w.own(&pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: &pb.FinishDeletions{}}})
	now := time.Now()
	h := &heartbeats{l: &leader{s: &Server{db: w.db}}, id: 1}
	w.view(func(r kv.Reader) { h.l.horizon.note(now, namespace.Totals(r).Clock, w.db.Applied()) })
	stubborn := func(id chunk.ID) bool { return id%3 > 0 }
	open := map[chunk.ID]bool{}
	w.view(func(r kv.Reader) {
		for _, id := range namespace.Deletions(r, 1, w.clock+1, chunks) {
			open[id] = true
		}
	})
	if len(open) != chunks {
		t.Fatalf("%d deletions", len(open))
	}
	times := map[chunk.ID]int{}
	for range 20 {
		now = now.Add(deletionsAgain)
		ids := h.order(now)
		if len(ids) > maxDeletions {
			t.Fatalf("%d at a time", len(ids))
		}
		done := &pb.FinishDeletions{Server: 1}
		for _, raw := range ids {
			if id := chunk.ID(raw); !stubborn(id) {
				delete(h.ordered, id)
				delete(open, id)
				done.Chunks = append(done.Chunks, raw)
			} else {
				times[id]++
			}
		}
		w.own(&pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: done}})
	}
	for id := range open {
		if !stubborn(id) {
			t.Fatalf("%v was not ordered to be deleted", id)
		}
		if times[id] < 2 {
			t.Fatalf("%v, which could not be deleted, was ordered to be %d times", id, times[id])
		}
	}
}

// TestRemovalOfAServerWithDeletions: a server that has much to delete is not forgotten by one command, which would hold all
// others up.
func TestRemovalOfAServerWithDeletions(t *testing.T) {
	s := start(t, Config{LeaseTTL: time.Hour, SessionTTL: 2 * time.Hour}).ready()
	servers := chunkServers(t, s, 2)
	c := call(t, s.Address()).open()
	const chunks = 20 * 256
	for range 20 {
		c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 256}}}))
	}
	c.must(c.do(&pb.Op{Op: &pb.Op_CloseSession{CloseSession: &pb.CloseSession{}}}))
	deletions := func() (n uint64) {
		if err := s.db.View(func(r kv.Reader) error { n = namespace.Totals(r).Deletions; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := deletions(); n != 2*chunks {
		t.Fatalf("%d deletions", n)
	}
	before := s.node.LastIndex()
	if err := s.lead.Load().remove(t.Context(), chunk.ServerID(servers[0].id), false); err != nil {
		t.Fatal(err)
	}
	if n := deletions(); n != chunks {
		t.Errorf("%d deletions are left", n)
	}
	if n := s.node.LastIndex() - before; n < 3 {
		t.Errorf("it took %d commands", n)
	}
}
