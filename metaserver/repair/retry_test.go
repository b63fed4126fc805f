package repair

import (
	"context"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// again lets the engine work as if it had waited long enough to try everything again.
func (w *world) again() {
	w.t.Helper()
	for _, r := range w.e.retries {
		r.after = time.Now().Add(-time.Second)
	}
	w.e.surveyed, w.e.stale = time.Time{}, true
	if err := w.e.step(context.Background()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) chunk(id chunk.ID) (c *namespace.ChunkRecord) {
	w.t.Helper()
	if err := w.View(func(r kv.Reader) error { c, _ = namespace.Chunk(r, id); return nil }); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// full makes a sealed chunk that has all its copies.
func (w *world) full(l chunk.Layout) *namespace.ChunkRecord {
	for {
		w.write(l, 20, true)
		id := chunk.ID(0)
		_ = w.View(func(r kv.Reader) error { id = namespace.NextChunk(r) - 1; return nil })
		if c := w.chunk(id); c.Full() {
			return c
		}
	}
}

// TestTriesOtherServers: a server that is healthy, and yet cannot make a shard, is not asked for it for ever while others
// could.
func TestTriesOtherServers(t *testing.T) {
	for name, last := range map[string]int{"others can": 3, "only the one asked last can": 1} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, 7)
			c := w.full(chunk.Copies(3))
			w.servers[c.Servers[0]].info.State = pb.ServerState_SERVER_STATE_DEAD
			tried := map[chunk.ServerID]bool{}
			for range 9 {
				w.again()
				if w.chunk(c.ID).Full() && len(w.chunk(c.ID).Moves) == 0 {
					break
				}
				for id, s := range w.servers {
					for _, o := range w.e.Orders(id, 100) {
						if o.Stored != uint64(c.ID) {
							w.obey(id, s, o)
							continue
						}
						if tried[id] = true; len(tried) > 4-last {
							w.obey(id, s, o)
							continue
						}
						w.e.Copied(id, []*pb.CopyResult{{Stored: o.Stored, Error: "no source answers"}})
					}
				}
			}
			got := w.chunk(c.ID)
			if got.Servers[0] == c.Servers[0] || !got.Full() || len(got.Moves) > 0 {
				t.Errorf("%d servers were asked, and the chunk is %+v", len(tried), got)
			}
			w.check()
		})
	}
}

// TestTriesOtherServersThanOnesThatHaveToDelete: a server that does not get on with deleting what it had of a chunk keeps
// nobody from repairing it.
func TestTriesOtherServersThanOnesThatHaveToDelete(t *testing.T) {
	for able := range chunk.ServerID(8) {
		w := newWorld(t, 1, 7)
		c := w.full(chunk.Copies(3))
		if able == 0 || c.ShardOn(able) >= 0 {
			continue
		}
		// Each of the others has something to delete under that id.
		for id := range w.servers {
			if c.ShardOn(id) < 0 && id != able {
				m := []*pb.Move{{Chunk: uint64(c.ID), Server: uint32(id)}}
				w.own(&pb.Op{Op: &pb.Op_StartMoves{StartMoves: &pb.StartMoves{Moves: m}}})
				w.own(&pb.Op{Op: &pb.Op_FinishMoves{FinishMoves: &pb.FinishMoves{Failed: m}}})
			}
		}
		w.servers[c.Servers[0]].info.State = pb.ServerState_SERVER_STATE_DEAD
		for range 8 {
			w.again()
		}
		if got := w.chunk(c.ID); len(got.Moves) != 1 || got.Moves[0].Server != able {
			t.Errorf("the chunk is %+v, want it on its way to %d", got, able)
		}
	}
}

// TestDoubtfulServers: clients cut off from chunk servers make all of them suspect, and may do so for as long as they like.
// That must not keep repair from working; a server that is silent may well be lost, and is spared.
func TestDoubtfulServers(t *testing.T) {
	w := newWorld(t, 1, 7)
	c := w.full(chunk.Copies(3))
	w.own(&pb.Op{Op: &pb.Op_LoseShards{LoseShards: &pb.LoseShards{Server: uint32(c.Servers[1]), Stored: []uint64{uint64(c.ID)}}}})
	suspect := func(silent time.Duration) {
		for _, s := range w.servers {
			s.info.State, s.info.LastSeenMs = pb.ServerState_SERVER_STATE_SUSPECT, uint64(silent.Milliseconds())
		}
		w.servers[c.Servers[0]].info.State = pb.ServerState_SERVER_STATE_DEAD
	}
	suspect(5 * time.Second)
	w.again()
	if got := w.chunk(c.ID); len(got.Moves) > 0 {
		t.Errorf("silent servers were asked: %+v", got)
	}
	suspect(time.Second)
	w.again()
	if got := w.chunk(c.ID); len(got.Moves) != 2 {
		t.Errorf("the chunk is %+v, want two shards on the move", got)
	}
	// As long as there is one that nobody doubts, it is preferred.
	w = newWorld(t, 1, 7)
	c = w.full(chunk.Copies(3))
	suspect(time.Second)
	var good chunk.ServerID
	for id := range w.servers {
		if c.ShardOn(id) < 0 {
			good = id
		}
	}
	w.servers[good].info.State = pb.ServerState_SERVER_STATE_HEALTHY
	w.again()
	if got := w.chunk(c.ID); len(got.Moves) != 1 || got.Moves[0].Server != good {
		t.Errorf("the chunk is %+v, want it on its way to %d", got, good)
	}
}

// TestShardsAreCountedBeforeTheyAreTold: what a server holds that is drained from now on is not known before somebody has
// looked.
func TestShardsAreCountedBeforeTheyAreTold(t *testing.T) {
	w := newWorld(t, 1, 5)
	c := w.full(chunk.Copies(3))
	id := c.Servers[0]
	w.step()
	told := func(want uint64, known bool) {
		t.Helper()
		if n, ok := w.e.Shards(id); ok != known || ok && n != want {
			t.Errorf("%d shards, %v, want %d, %v", n, ok, want, known)
		}
	}
	told(0, false)
	drain := func(on bool) {
		w.servers[id].info.Draining = on
		w.own(&pb.Op{Op: &pb.Op_SetServer{SetServer: &pb.SetServer{Server: uint32(id), Draining: on}}})
	}
	for range 2 {
		drain(true)
		w.e.surveyed, w.e.took = time.Now(), time.Minute // the last look took so long that there is no other soon
		if err := w.e.step(context.Background()); err != nil {
			t.Fatal(err)
		}
		told(0, false)
		w.e.took = 0
		w.step()
		held := uint64(0)
		_ = w.View(func(r kv.Reader) error {
			namespace.Copies(r, id, func(chunk.ID) bool { held++; return true })
			return nil
		})
		told(held, true)
		drain(false)
		w.step()
		told(0, false)
	}
}
