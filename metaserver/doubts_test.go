package metaserver

import (
	"slices"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// A shard that its server finds damaged before its writer commits anything of it does not count for long after that, nor is it doubtful.
func TestDamageBeforeItCounts(t *testing.T) {
	s := start(t, Config{LeaseTTL: 200 * time.Millisecond, SessionTTL: time.Minute}).ready()
	servers := chunkServers(t, s, 3)
	c := call(t, s.Address()).open()
	c.connect(50 * time.Millisecond)
	f := c.must(c.do(create("f"))).Attr
	id := c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1}}})).Chunks[0].Id
	x := servers[0]
	all := []uint32{x.id, servers[1].id, servers[2].id}
	for _, s := range servers {
		s.mu.Lock()
		s.holds[id] = 3000
		s.mu.Unlock()
	}
	commit := func(length uint64) {
		t.Helper()
		c.must(c.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: f.Inode, Size: length, Extents: []*pb.Extent{{Length: length, Chunk: id}},
			Chunks: []*pb.ChunkCommit{{Chunk: id, Length: length, Servers: all}}}}}))
	}
	counts := func() bool {
		held := false
		if err := s.db.View(func(r kv.Reader) error {
			c, ok := namespace.Chunk(r, chunk.ID(id))
			shard := c.ShardOn(chunk.ServerID(x.id))
			held = ok && shard >= 0 && c.Holds(shard)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return held
	}
	x.mu.Lock()
	x.bad = []uint64{id}
	x.mu.Unlock()
	if err := s.lead.Load().lost(chunk.ServerID(x.id), []chunk.ID{chunk.ID(id)}, nil); err != nil {
		t.Fatal(err)
	}
	commit(1000)
	eventually(t, "the damaged shard does not count", func() bool { return !counts() })
	doubts := func() int {
		l := s.lead.Load()
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.doubts)
	}
	c.must(c.do(&pb.Op{Op: &pb.Op_SetAttr{SetAttr: &pb.SetAttr{Inode: f.Inode, Size: new(uint64(0))}}}))
	c.must(c.do(&pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: []*pb.ChunkCommit{{Chunk: id, Length: 1000}}}}}))
	eventually(t, "nothing is doubtful any more", func() bool { return doubts() == 0 })
}

// What a client says of shards that there are not, or of servers, is not remembered.
func TestReportsOfNothing(t *testing.T) {
	s := start(t, Config{}).ready()
	servers := chunkServers(t, s, 3)
	c := call(t, s.Address()).open()
	id := c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1}}})).Chunks[0].Id
	for _, r := range []*pb.ReportServerRequest{{Server: 99, Chunk: id}, {Server: servers[0].id, Chunk: 1 << 30}, {Server: servers[0].id, Chunk: id}} {
		r.Session = c.session
		if _, err := c.meta(c.at).ReportServer(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the server is asked to check its shard", func() bool {
		servers[0].mu.Lock()
		defer servers[0].mu.Unlock()
		return slices.Contains(servers[0].asked, id)
	})
	servers[0].mu.Lock()
	if len(servers[0].asked) != 1 {
		t.Errorf("it was asked to check %v", servers[0].asked)
	}
	servers[0].mu.Unlock()
	l := s.lead.Load()
	l.mu.Lock()
	if len(l.checks) != 0 {
		t.Errorf("remembered: %v", l.checks)
	}
	l.mu.Unlock()
}

// A copy that its server lost the end of is not counted for long when its writer, who has not noticed, names it again.
func TestShortCopyIsNamedAgain(t *testing.T) {
	for name, cut := range map[string]bool{"sealed": false, "cut": true} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Config{LeaseTTL: 200 * time.Millisecond, SessionTTL: time.Minute}).ready()
			servers := chunkServers(t, s, 3)
			c := call(t, s.Address()).open()
			c.connect(50 * time.Millisecond)
			f := c.must(c.do(create("f"))).Attr
			id := c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1}}})).Chunks[0].Id
			x := servers[0]
			all := []uint32{x.id, servers[1].id, servers[2].id}
			for _, s := range servers {
				s.mu.Lock()
				s.holds[id] = 2000
				s.mu.Unlock()
			}
			c.must(c.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: f.Inode, Size: 1000, Extents: []*pb.Extent{{Length: 1000, Chunk: id}},
				Chunks: []*pb.ChunkCommit{{Chunk: id, Length: 2000, Servers: all}}}}}))
			counts := func() bool {
				held := false
				if err := s.db.View(func(r kv.Reader) error {
					c, ok := namespace.Chunk(r, chunk.ID(id))
					held = ok && counts(c, chunk.ServerID(x.id), chunk.ID(id))
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				return held
			}
			// It lost power, and comes back.
			back := &fakeServer{t: t, uuid: x.uuid, id: x.id, cluster: x.cluster, holds: map[uint64]uint64{id: 1000}}
			back.beat(s, 20*time.Millisecond)
			eventually(t, "the short copy does not count", func() bool { return !counts() })
			l := s.lead.Load()
			doubts := func() int {
				l.mu.Lock()
				defer l.mu.Unlock()
				return len(l.doubts)
			}
			if n := doubts(); n != 1 {
				t.Errorf("%d shards are doubtful", n)
			}
			seal := &pb.ChunkCommit{Chunk: id, Length: 2000, Servers: all, Seal: true}
			if cut { // now it is as long as it has to be
				seal.Length, seal.Cut = 1000, true
			}
			c.must(c.do(&pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: []*pb.ChunkCommit{seal}}}}))
			eventually(t, "nothing is doubtful any more", func() bool { return doubts() == 0 })
			eventually(t, "it counts only if it is long enough", func() bool { return counts() == cut })
		})
	}
}
