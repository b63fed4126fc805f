package repair

import (
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// TestKeepsForWriters: what repair seals stays for its writer, though nothing refers to it any more.
func TestKeepsForWriters(t *testing.T) {
	w := newWorld(t, 1, 5)
	w.write(chunk.Copies(3), 20, false)
	w.servers[w.chunk(1).Servers[0]].info.State = pb.ServerState_SERVER_STATE_DEAD
	w.step()
	if c := w.chunk(1); c.Owner != 0 || c.Writer != w.session {
		t.Fatalf("the chunk is %+v", c)
	}
	w.do(&pb.Op{Op: &pb.Op_SetAttr{SetAttr: &pb.SetAttr{Inode: w.file, Size: new(uint64)}}})
	for range 3 {
		w.serve(false)
		w.step()
	}
	if c := w.chunk(1); c == nil || !c.Full() {
		t.Errorf("the chunk is %+v", c)
	}
	w.giveUp()
	if c := w.chunk(1); c != nil {
		t.Errorf("its writer gave it up, and it is %+v", c)
	}
	w.check()
}

// giveUp is what a writer does that has brought elsewhere what it had not committed of the first chunk.
func (w *world) giveUp() {
	w.t.Helper()
	w.do(&pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: []*pb.ChunkCommit{{Chunk: 1}}}}})
}

// TestDrainWaitsForWriters: what is copied of a chunk is what was committed of it. So whoever is drained keeps what more it has
// until the writer has brought that elsewhere.
func TestDrainWaitsForWriters(t *testing.T) {
	for name, end := range map[string]func(w *world, drained *fakeServer){
		"given up": func(w *world, _ *fakeServer) { w.giveUp() },
		"expired": func(w *world, _ *fakeServer) {
			w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{w.session}}}})
		},
		"dead": func(_ *world, drained *fakeServer) { drained.info.State = pb.ServerState_SERVER_STATE_DEAD },
		"lost": func(w *world, drained *fakeServer) {
			w.own(&pb.Op{Op: &pb.Op_LoseShards{LoseShards: &pb.LoseShards{Server: drained.info.Id, Stored: []uint64{1}}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, 5)
			w.write(chunk.Copies(1), 20, false)
			from := w.chunk(1).Servers[0]
			drained := w.servers[from]
			drained.info.Draining = true
			w.own(&pb.Op{Op: &pb.Op_SetServer{SetServer: &pb.SetServer{Server: uint32(from), Draining: true}}})
			for i := range 6 {
				w.step()
				w.serve(false)
				if i == 3 { // another leads
					w.e = New(w, Config{StormPatience: time.Nanosecond})
				}
				for _, m := range w.e.moves { // it takes as long as the writer likes
					m.began = m.began.Add(-moveTimeout)
				}
			}
			c := w.chunk(1)
			if c.Owner != 0 || c.Servers[0] != from || len(c.Moves) != 1 {
				t.Fatalf("the chunk is %+v", c)
			}
			to := c.Moves[0].Server
			if !w.servers[to].holds[1] {
				t.Error("it is not copied meanwhile")
			}
			if s := w.e.servers[to]; s.to != 0 || s.incoming != 0 {
				t.Errorf("%d moves of %d bytes to its new server count as under way", s.to, s.incoming)
			}
			if n := w.e.Waiting(from); n != 1 {
				t.Errorf("%d shards wait for their writers", n)
			}
			if n := w.e.Stats().Moving; n != 0 {
				t.Errorf("%d moves are under way", n)
			}
			end(w, drained)
			for range 2 {
				w.step()
				w.serve(false)
			}
			if c := w.chunk(1); c.Servers[0] != to || !c.Full() || len(c.Moves) > 0 {
				t.Errorf("afterwards the chunk is %+v", c)
			}
			if n := w.e.Waiting(from); n != 0 {
				t.Errorf("%d shards still wait for their writers", n)
			}
			if s := w.e.servers[to]; s.to != 0 || s.incoming != 0 || len(w.e.moves) > 0 {
				t.Errorf("%d moves of %d bytes to its new server count as under way, of %d", s.to, s.incoming, len(w.e.moves))
			}
			_ = w.View(func(r kv.Reader) error {
				if namespace.HasCopy(r, from, 1) {
					t.Error("the drained server is not empty")
				}
				return nil
			})
			w.check()
		})
	}
}
