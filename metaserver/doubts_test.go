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

// oneWriter is a cluster of three servers and a client that writes one chunk to them; each holds bytes of it that are not committed.
type oneWriter struct {
	t       *testing.T
	s       *running
	c       *caller
	id      uint64 // of the chunk
	inode   uint64
	servers []*fakeServer
	all     []uint32
}

func newOneWriter(t *testing.T, length uint64) *oneWriter {
	w := &oneWriter{t: t, s: start(t, Config{LeaseTTL: 200 * time.Millisecond, SessionTTL: time.Minute}).ready()}
	w.servers = chunkServers(t, w.s, 3)
	w.c = call(t, w.s.Address()).open()
	w.c.connect(50 * time.Millisecond)
	w.inode = w.c.must(w.c.do(create("f"))).Attr.Inode
	w.id = w.c.must(w.c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1}}})).Chunks[0].Id
	for _, s := range w.servers {
		w.all = append(w.all, s.id)
		s.mu.Lock()
		s.holds[w.id] = length
		s.mu.Unlock()
	}
	return w
}

// commit makes the file the first size bytes of the chunk, of which all servers are said to have length.
func (w *oneWriter) commit(size, length uint64) {
	w.t.Helper()
	w.c.must(w.c.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: w.inode, Size: size, Extents: []*pb.Extent{{Length: size, Chunk: w.id}},
		Chunks: []*pb.ChunkCommit{{Chunk: w.id, Length: length, Servers: w.all}}}}}))
}

// counts tells whether what the first server has counts.
func (w *oneWriter) counts() bool {
	w.t.Helper()
	held := false
	if err := w.s.db.View(func(r kv.Reader) error {
		c, ok := namespace.Chunk(r, chunk.ID(w.id))
		held = ok && counts(c, chunk.ServerID(w.all[0]), chunk.ID(w.id))
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	return held
}

// doubts is how many shards are doubtful.
func (w *oneWriter) doubts() int {
	l := w.s.lead.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.doubts)
}

func (w *oneWriter) seal(c *pb.ChunkCommit) {
	w.t.Helper()
	w.c.must(w.c.do(&pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: []*pb.ChunkCommit{c}}}}))
}

// A shard that its server finds damaged before its writer commits anything of it does not count for long after that, nor is it doubtful.
func TestDamageBeforeItCounts(t *testing.T) {
	w := newOneWriter(t, 3000)
	x := w.servers[0]
	x.mu.Lock()
	x.bad = []uint64{w.id}
	x.mu.Unlock()
	if err := w.s.lead.Load().lost(chunk.ServerID(x.id), []chunk.ID{chunk.ID(w.id)}, nil); err != nil {
		t.Fatal(err)
	}
	w.commit(1000, 1000)
	eventually(t, "the damaged shard does not count", func() bool { return !w.counts() })
	w.c.must(w.c.do(&pb.Op{Op: &pb.Op_SetAttr{SetAttr: &pb.SetAttr{Inode: w.inode, Size: new(uint64(0))}}}))
	w.seal(&pb.ChunkCommit{Chunk: w.id, Length: 1000})
	eventually(t, "nothing is doubtful any more", func() bool { return w.doubts() == 0 })
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
			w := newOneWriter(t, 2000)
			w.commit(1000, 2000)
			// One lost power, and comes back.
			x := w.servers[0]
			back := &fakeServer{t: t, uuid: x.uuid, id: x.id, cluster: x.cluster, holds: map[uint64]uint64{w.id: 1000}}
			back.beat(w.s, 20*time.Millisecond)
			eventually(t, "the short copy does not count", func() bool { return !w.counts() })
			if n := w.doubts(); n != 1 {
				t.Errorf("%d shards are doubtful", n)
			}
			seal := &pb.ChunkCommit{Chunk: w.id, Length: 2000, Servers: w.all, Seal: true}
			if cut { // now it is as long as it has to be
				seal.Length, seal.Cut = 1000, true
			}
			w.seal(seal)
			eventually(t, "nothing is doubtful any more", func() bool { return w.doubts() == 0 })
			eventually(t, "it counts only if it is long enough", func() bool { return w.counts() == cut })
		})
	}
}
