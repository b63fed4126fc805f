package namespace

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func all(id, length uint64) *pb.ChunkCommit {
	return &pb.ChunkCommit{Chunk: id, Length: length, Servers: []uint32{1, 2, 3}}
}

// layoutOf describes a file's extents: offset+length=chunk@offset or the data, a word each.
func (w *world) layoutOf(num uint64) string {
	w.Helper()
	var out []string
	a := w.attr(num)
	for off := uint64(0); off < max(a.Size, 1); {
		r, err := Extents(w.s, num, off, 0)
		if err != nil {
			w.Fatal(err)
		}
		for _, e := range r.Extents {
			if e.Chunk == 0 {
				out = append(out, fmt.Sprintf("%d+%d=%s", e.Offset, e.Length, e.Data))
			} else {
				out = append(out, fmt.Sprintf("%d+%d=%d@%d", e.Offset, e.Length, e.Chunk, e.ChunkOffset))
			}
		}
		off = r.End
	}
	w.s.settle(w)
	return strings.Join(out, " ")
}

func TestCommit(t *testing.T) {
	const block = posix.ExtentBlock
	chunks := func(id, off, length, coff uint64) *pb.Extent {
		return &pb.Extent{Offset: off, Length: length, Chunk: id, ChunkOffset: coff}
	}
	inline := func(off uint64, data string) *pb.Extent {
		return &pb.Extent{Offset: off, Length: uint64(len(data)), Data: []byte(data)}
	}
	for _, c := range []struct {
		name    string
		commits [][]*pb.Extent
		want    string
	}{
		{"one", [][]*pb.Extent{{chunks(1, 10, 20, 0)}}, "10+20=1@0"},
		{"carried on", [][]*pb.Extent{{chunks(1, 0, 20, 0)}, {chunks(1, 20, 30, 20)}}, "0+50=1@0"},
		{"carried on within a commit", [][]*pb.Extent{{chunks(1, 0, 20, 0), chunks(1, 20, 30, 20)}}, "0+50=1@0"},
		{"beside, elsewhere in the chunk", [][]*pb.Extent{{chunks(1, 0, 20, 0)}, {chunks(1, 20, 30, 50)}}, "0+20=1@0 20+30=1@50"},
		{"split", [][]*pb.Extent{{chunks(1, 0, 100, 0)}, {chunks(2, 40, 20, 0)}}, "0+40=1@0 40+20=2@0 60+40=1@60"},
		{"the front", [][]*pb.Extent{{chunks(1, 10, 100, 0)}, {chunks(2, 0, 20, 0)}}, "0+20=2@0 20+90=1@10"},
		{"the back", [][]*pb.Extent{{chunks(1, 0, 100, 0)}, {chunks(2, 90, 20, 0)}}, "0+90=1@0 90+20=2@0"},
		{"whole", [][]*pb.Extent{{chunks(1, 10, 10, 0), chunks(1, 30, 10, 10)}, {chunks(2, 0, 50, 0)}}, "0+50=2@0"},
		{"the same place", [][]*pb.Extent{{chunks(1, 0, 10, 0)}, {chunks(1, 0, 10, 0)}}, "0+10=1@0"},
		{"across blocks", [][]*pb.Extent{{chunks(1, block-10, 20, 5)}}, fmt.Sprintf("%d+10=1@5 %d+10=1@15", block-10, block)},
		{"over a block's end", [][]*pb.Extent{{chunks(1, block-50, 100, 0)}, {chunks(2, block-10, 20, 0)}},
			fmt.Sprintf("%d+40=1@0 %d+10=2@0 %d+10=2@10 %d+40=1@60", block-50, block-10, block, block+10)},
		{"later over earlier", [][]*pb.Extent{{chunks(1, 0, 50, 0), chunks(2, 10, 10, 0), chunks(1, 12, 2, 99), chunks(2, 0, 5, 50)}},
			"0+5=2@50 5+5=1@5 10+2=2@0 12+2=1@99 14+6=2@4 20+30=1@20"},
		{"inline", [][]*pb.Extent{{inline(0, "hello")}, {inline(5, " world")}}, "0+11=hello world"},
		{"inline over inline", [][]*pb.Extent{{inline(0, "hello")}, {inline(1, "EL")}}, "0+5=hELlo"},
		{"inline over a chunk", [][]*pb.Extent{{chunks(1, 0, 10, 0)}, {inline(4, "ab")}}, "0+4=1@0 4+2=ab 6+4=1@6"},
		{"a chunk over inline", [][]*pb.Extent{{inline(0, "0123456789")}, {chunks(1, 4, 2, 0)}}, "0+4=0123 4+2=1@0 6+4=6789"},
		{"both", [][]*pb.Extent{{inline(0, "0123456789"), chunks(1, 2, 6, 0), inline(4, "x")}}, "0+2=01 2+2=1@0 4+1=x 5+3=1@3 8+2=89"},
		{"inline across blocks", [][]*pb.Extent{{chunks(1, block-10, 20, 0)}, {inline(block-2, "abcd")}},
			fmt.Sprintf("%d+8=1@0 %d+2=ab %d+2=cd %d+8=1@12", block-10, block-2, block, block+2)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			f := w.file(root, 1, "f", 0o644)
			w.want(0, w.do(root, opAlloc(2, 1, 2, 3)))
			var end uint64
			for _, extents := range c.commits {
				op := opCommit(&pb.Commit{Inode: f, Extents: extents, Chunks: []*pb.ChunkCommit{all(1, 4096), all(2, 4096)}})
				before := proto.Clone(op)
				a := w.want(0, w.do(root, op)).Attr
				for _, e := range extents {
					end = max(end, e.Offset+e.Length)
				}
				if a.Size != end || a.DataVersion != w.index || a.Version != w.index || a.Mtime != w.clock {
					t.Errorf("attributes: %v, size %d", a, end)
				}
				if !proto.Equal(before, op) {
					t.Error("the command was changed")
				}
			}
			if got := w.layoutOf(f); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			w.check()
			// Truncation at every place where something changes.
			for size := end; size > 0; size -= min(size, end/7+1) {
				w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: f, Size: new(size)})))
				w.check()
			}
			w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: f, Size: new(uint64(0))})))
			if a := w.attr(f); a.Allocated != 0 || a.Size != 0 {
				t.Errorf("truncated: %v", a)
			}
			w.want(0, w.do(root, opUnlink(1, "f")))
			w.check()
			if tot := Totals(w.s); tot.LiveBytes != 0 || tot.InlineBytes != 0 || tot.Chunks != 2 {
				t.Errorf("totals: %+v", tot)
			}
		})
	}
}

func TestTruncateLeavesAHole(t *testing.T) {
	w := newWorld(t)
	f := w.file(root, 1, "f", 0o644)
	w.want(0, w.do(root, opAlloc(1, 1, 2, 3)))
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 100, Chunk: 1}, {Offset: 200, Length: 3, Data: []byte("abc")}}, Chunks: []*pb.ChunkCommit{all(1, 100)}, Size: 500})))
	if a := w.attr(f); a.Size != 500 || a.Allocated != 103 {
		t.Errorf("attributes: %v", a)
	}
	for _, size := range []uint64{202, 50, 300} {
		w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: f, Size: new(size)})))
	}
	if got := w.layoutOf(f); got != "0+50=1@0" {
		t.Errorf("got %s", got)
	}
	w.check()
}

func TestAppend(t *testing.T) {
	w := newWorld(t)
	f := w.file(root, 1, "f", 0o644)
	for i, want := range []uint64{0, 3, 6} {
		res := w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Append: true, Extents: []*pb.Extent{{Length: 3, Data: []byte("abc")}}})))
		if res.Offset != want || res.Attr.Size != want+3 {
			t.Errorf("append %d: %v", i, res)
		}
	}
	if got := w.layoutOf(f); got != "0+9=abcabcabc" {
		t.Errorf("got %s", got)
	}
	w.check()
}

// TestCommitIsRefusedWhole has a good extent in every commit, which must not be seen afterwards.
func TestCommitIsRefusedWhole(t *testing.T) {
	w := newWorld(t)
	f := w.file(root, 1, "f", 0o644)
	dir := w.mkdir(root, 1, "d", 0o755)
	mine := w.want(0, w.do(root, opAlloc(3, 1, 2, 3))).Chunks
	a, b, sealed := mine[0].Id, mine[1].Id, mine[2].Id
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Offset: 9000, Length: 10, Chunk: sealed}, {Length: 4000, Data: make([]byte, 4000)}},
		Chunks: []*pb.ChunkCommit{all(a, 50), {Chunk: sealed, Length: 100, Servers: []uint32{1, 2}, Seal: true}}})))
	first := w.session
	w.session = w.open(2)
	firstSeq := w.seq
	w.seq = 0
	foreign := w.want(0, w.do(root, opAlloc(1, 1, 2, 3))).Chunks[0].Id
	w.session, w.seq = first, firstSeq

	good := &pb.Extent{Offset: 5000, Length: 50, Chunk: a}
	for _, c := range []struct {
		name   string
		commit *pb.Commit
		want   syscall.Errno
	}{
		{"another session's chunk", &pb.Commit{Extents: []*pb.Extent{good}, Chunks: []*pb.ChunkCommit{all(foreign, 10)}}, syscall.EINVAL},
		{"an extent in another session's chunk", &pb.Commit{Extents: []*pb.Extent{good, {Length: 1, Chunk: foreign}}}, syscall.EINVAL},
		{"a sealed chunk", &pb.Commit{Extents: []*pb.Extent{good}, Chunks: []*pb.ChunkCommit{all(sealed, 200)}}, syscall.EINVAL},
		{"an extent in a sealed chunk", &pb.Commit{Extents: []*pb.Extent{good, {Length: 1, Chunk: sealed}}}, syscall.EINVAL},
		{"no such chunk", &pb.Commit{Extents: []*pb.Extent{good, {Length: 1, Chunk: 999}}}, syscall.EINVAL},
		{"beyond the chunk's length", &pb.Commit{Extents: []*pb.Extent{good, {Length: 1, Chunk: a, ChunkOffset: 50}}}, syscall.EINVAL},
		{"far beyond it", &pb.Commit{Extents: []*pb.Extent{good, {Length: 1, Chunk: a, ChunkOffset: 1<<64 - 1}}}, syscall.EINVAL},
		{"a pending chunk", &pb.Commit{Extents: []*pb.Extent{good, {Length: 1, Chunk: b}}}, syscall.EINVAL},
		{"a chunk too long", &pb.Commit{Extents: []*pb.Extent{good}, Chunks: []*pb.ChunkCommit{all(a, chunk.MaxLength+1)}}, syscall.EINVAL},
		{"too few servers", &pb.Commit{Extents: []*pb.Extent{good}, Chunks: []*pb.ChunkCommit{{Chunk: a, Length: 60, Servers: []uint32{1, 1}}}}, syscall.EINVAL},
		{"a server that it was not placed on", &pb.Commit{Extents: []*pb.Extent{good}, Chunks: []*pb.ChunkCommit{{Chunk: a, Length: 60, Servers: []uint32{1, 2, 4}}}}, syscall.EINVAL},
		{"an extent of nothing", &pb.Commit{Extents: []*pb.Extent{good, {Chunk: a}}}, syscall.EFBIG},
		{"an extent too far", &pb.Commit{Extents: []*pb.Extent{good, {Offset: posix.MaxSize, Length: 1, Chunk: a}}}, syscall.EFBIG},
		{"an extent that wraps", &pb.Commit{Extents: []*pb.Extent{good, {Offset: 1<<64 - 1, Length: 2, Chunk: a}}}, syscall.EFBIG},
		{"a size too big", &pb.Commit{Extents: []*pb.Extent{good}, Size: 1 << 63}, syscall.EFBIG},
		{"data of another length", &pb.Commit{Extents: []*pb.Extent{good, {Length: 2, Data: []byte("abc")}}}, syscall.EINVAL},
		{"data in a chunk", &pb.Commit{Extents: []*pb.Extent{good, {Length: 3, Chunk: a, Data: []byte("abc")}}}, syscall.EINVAL},
		{"too much inline", &pb.Commit{Extents: []*pb.Extent{good, {Offset: 4000, Length: 97, Data: make([]byte, 97)}}}, syscall.E2BIG},
		{"far too much inline", &pb.Commit{Extents: []*pb.Extent{{Length: 1 << 20, Data: make([]byte, 1<<20)}}}, syscall.E2BIG},
		{"too many extents", &pb.Commit{Extents: make([]*pb.Extent, maxCommitExtents+1)}, syscall.EINVAL},
		{"a directory", &pb.Commit{Inode: dir, Extents: []*pb.Extent{good}}, syscall.EINVAL},
		{"nothing", &pb.Commit{Inode: 999, Extents: []*pb.Extent{good}}, syscall.ESTALE},
	} {
		if c.commit.Inode == 0 {
			c.commit.Inode = f
		}
		before := w.s.dump()
		res := w.do(root, opCommit(c.commit))
		if syscall.Errno(res.Errno) != c.want {
			t.Errorf("%s: %q (%s), want %q", c.name, syscall.Errno(res.Errno), res.Message, c.want)
		}
		onlyRecorded(t, c.name, before, w.s.dump())
	}
	w.check()
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{good, {Offset: 4000, Length: 96, Data: make([]byte, 96)}}})))
	w.check()
}

// TestOvertakenCommit: files of a session share chunks, and the commit of one that names less of a chunk may come after
// that of another that named more.
func TestOvertakenCommit(t *testing.T) {
	w := newWorld(t)
	f, g := w.file(root, 1, "f", 0o644), w.file(root, 1, "g", 0o644)
	c := w.want(0, w.do(root, opAlloc(1, 1, 2, 3))).Chunks[0].Id
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: g, Extents: []*pb.Extent{{Length: 40, Chunk: c, ChunkOffset: 60}},
		Chunks: []*pb.ChunkCommit{{Chunk: c, Length: 100, Servers: []uint32{1, 2}}}})))
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 60, Chunk: c}}, Chunks: []*pb.ChunkCommit{all(c, 60)}})))
	rec, ok := Chunk(w.s, chunk.ID(c))
	if !ok || rec.Length != 100 || rec.Live != 100 || !slices.Equal(holders(rec), []chunk.ServerID{1, 2}) {
		t.Errorf("the chunk afterwards: %+v, want 100 bytes on servers 1 and 2", rec)
	}
	w.check()
}

// holders lists the servers that hold all of a chunk's shard.
func holders(c *ChunkRecord) []chunk.ServerID {
	var out []chunk.ServerID
	for shard, s := range c.Servers {
		if c.Holds(shard) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

func TestChunkLifecycle(t *testing.T) {
	w := newWorld(t)
	f := w.file(root, 1, "f", 0o644)
	got := w.want(0, w.do(root, opAlloc(4, 1, 2, 3, 4))).Chunks
	if len(got) != 4 || got[0].Id != 1 || len(got[0].Servers) != 3 || got[3].Layout.Data != 1 || got[3].Layout.Parity != 2 || NextChunk(w.s) != 5 {
		t.Fatalf("allocated: %v", got)
	}
	w.check()
	s := got[0].Servers
	record := func(id uint64) *ChunkRecord {
		c, ok := Chunk(w.s, chunk.ID(id))
		w.s.settle(t)
		if !ok {
			return nil
		}
		return c
	}
	// The third server lags at first, then has caught up: it is recorded.
	commit := func(length uint64, seal bool, servers ...uint32) {
		t.Helper()
		w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: length, Chunk: 1}},
			Chunks: []*pb.ChunkCommit{{Chunk: 1, Length: length, Servers: servers, Seal: seal}}})))
		w.check()
	}
	commit(10, false, s[0], s[1])
	if c := record(1); len(holders(c)) != 2 || len(c.Servers) != 3 || c.Owner != w.session || c.Live != 10 || c.Length != 10 {
		t.Errorf("one lags: %+v", c)
	}
	commit(20, false, s[0], s[1], s[2])
	if c := record(1); len(holders(c)) != 3 {
		t.Errorf("it has caught up: %+v", c)
	}
	// Named again at the same length, those that held it still do.
	commit(20, false, s[0])
	if c := record(1); len(holders(c)) != 3 {
		t.Errorf("a copy was forgotten: %+v", c)
	}
	// The last server failed: its copy goes when the chunk is sealed.
	commit(30, true, s[0], s[1])
	if c := record(1); len(holders(c)) != 2 || slices.Contains(c.Servers, chunk.ServerID(s[2])) || c.Owner != 0 {
		t.Errorf("sealed: %+v", c)
	}
	if HasCopy(w.s, chunk.ServerID(s[2]), 1) || !HasCopy(w.s, chunk.ServerID(s[0]), 1) {
		t.Error("the index of copies is wrong")
	}
	if d := Deletions(w.s, chunk.ServerID(s[2]), w.clock+1, 9); len(d) != 1 || d[0] != 1 {
		t.Errorf("the failed copy's deletion: %v", d)
	}
	if d := Deletions(w.s, chunk.ServerID(s[2]), w.clock, 9); len(d) != 0 {
		t.Errorf("a deletion too early: %v", d)
	}
	// Sealed unwritten, it goes; sealed twice, nothing happens.
	for range 2 {
		w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: got[1].Id}, &pb.ChunkCommit{Chunk: 1})))
		w.check()
	}
	if record(2) != nil || record(1) == nil {
		t.Error("sealed: the wrong chunks are there")
	}
	// A chunk whose owner is there survives without live bytes; overwritten after that it is deleted.
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 30, Chunk: 3}}, Chunks: []*pb.ChunkCommit{
		{Chunk: 3, Length: 30, Servers: got[2].Servers}}})))
	if record(1) != nil {
		t.Error("an overwritten chunk is still there")
	}
	w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: f, Size: new(uint64(0))})))
	if c := record(3); c == nil || c.Live != 0 {
		t.Errorf("a chunk that is written: %+v", c)
	}
	w.check()
	var copies []chunk.ID
	for server := range chunk.ServerID(5) {
		Copies(w.s, server, func(id chunk.ID) bool { copies = append(copies, id); return true })
		w.want(0, w.own(&pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: &pb.FinishDeletions{Server: uint32(server), Chunks: []uint64{1, 2, 3, 99}}}}))
		w.check()
	}
	if len(copies) != 6 || Totals(w.s).Deletions != 0 {
		t.Errorf("copies %v, totals %+v", copies, Totals(w.s))
	}
	w.s.settle(t)
}

func TestAllocation(t *testing.T) {
	w := newWorld(t)
	w.want(syscall.EAGAIN, w.do(root, opAlloc(1, 1)))
	w.want(syscall.EAGAIN, w.do(root, opAlloc(1, 1, 1, 99, 98))) // twice the same, and strangers
	w.want(syscall.EINVAL, w.do(root, opAlloc(0, 1, 2)))
	w.want(syscall.EINVAL, w.do(root, opAlloc(257, 1, 2)))
	bad := opAlloc(1, 1, 2)
	bad.GetAllocChunks().Layout = &pb.Layout{Data: 1, Parity: 1, MinShards: 3}
	w.want(syscall.EINVAL, w.do(root, bad))
	bad.GetAllocChunks().Layout = nil
	w.want(syscall.EINVAL, w.do(root, bad))
	if c := w.want(0, w.do(root, opAlloc(1, 1, 2))).Chunks[0]; len(c.Servers) != 3 || c.Servers[2] != 0 {
		t.Errorf("two servers: %v", c)
	}
	op := opAlloc(256, 1, 2, 3, 4)
	op.GetAllocChunks().Avoid = []uint32{2}
	for _, c := range w.want(0, w.do(root, op)).Chunks {
		for _, s := range c.Servers {
			if s == 2 || len(c.Servers) != 3 {
				t.Fatalf("server 2 was to be avoided: %v", c)
			}
		}
	}
	op = opAlloc(1, 1, 2, 3)
	op.GetAllocChunks().Avoid = []uint32{2, 3}
	if c := w.want(0, w.do(root, op)).Chunks[0]; c.Servers[2] == 0 {
		t.Errorf("avoided servers, where there are no others: %v", c)
	}
	w.check()
}

// TestExtentsInPages writes more extents than fit in a reply.
func TestExtentsInPages(t *testing.T) {
	w := newWorld(t)
	f := w.file(root, 1, "f", 0o644)
	w.want(0, w.do(root, opAlloc(1, 1, 2, 3)))
	const n = maxReplyExtents + 5000
	for at := 0; at < n; at += maxCommitExtents {
		var list []*pb.Extent
		for i := at; i < min(at+maxCommitExtents, n); i++ {
			list = append(list, &pb.Extent{Offset: uint64(i) * 4096, Length: 1, Chunk: 1, ChunkOffset: uint64(i % 100)})
		}
		w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: list, Chunks: []*pb.ChunkCommit{all(1, 100)}})))
	}
	w.check()
	got, pages := 0, 0
	for off := uint64(0); off < w.attr(f).Size; pages++ {
		r, err := Extents(w.s, f, off, 1<<40)
		if err != nil || r.Offset != off || r.End <= off || len(r.Chunks) > 1 {
			t.Fatal(err, r.Offset, r.End, len(r.Chunks))
		}
		for _, e := range r.Extents {
			if e.Offset != uint64(got)*4096 || e.ChunkOffset != uint64(got%100) {
				t.Fatalf("extent %d: %v", got, e)
			}
			got++
		}
		off = r.End
		w.s.settle(t)
	}
	if got != n || pages != 2 {
		t.Errorf("%d extents in %d pages", got, pages)
	}
	// Clipped on both sides.
	r, err := Extents(w.s, f, 0, 1)
	if err != nil || len(r.Extents) != 1 || r.End != 1 {
		t.Errorf("one byte: %v %v", r, err)
	}
	if _, err := Extents(w.s, f, 1<<63, 0); fserr.Errno(err) != syscall.EINVAL {
		t.Errorf("an absurd range: %v", err)
	}
	w.s.settle(t)
}

func TestTooManyExtentsInABlock(t *testing.T) {
	w := newWorld(t)
	f := w.file(root, 1, "f", 0o644)
	w.want(0, w.do(root, opAlloc(1, 1, 2, 3)))
	// A block as full as it gets, written as a record; one more extent is refused, one over another is not.
	b := block{}
	var list []piece
	for i := range uint64(maxBlockExtents) {
		list = append(list, piece{off: i * 2, len: 1, chunk: 1, coff: i % 100})
	}
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Size: 1 << 26, Chunks: []*pb.ChunkCommit{all(1, 100)}})))
	w.s.buckets[bExtent].Set(string(extentKey(f, 0)), b.appendPieces([]byte{formatVersion}, list))
	in, _ := getInode(w.s, f)
	in.allocated = maxBlockExtents
	w.s.Put(bInode, key8(f), in.encode())
	c, _ := getChunk(w.s, 1)
	c.Live = maxBlockExtents
	w.s.Put(bChunk, key8(1), c.encode())
	cs, _ := decodeCounters(w.s.Get(bState, countersKey))
	cs.live = maxBlockExtents
	w.s.Put(bState, countersKey, cs.encode())
	w.s.settle(t)
	w.check()
	w.want(syscall.ENOSPC, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Offset: 1, Length: 1, Chunk: 1, ChunkOffset: 50}}})))
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Offset: 2, Length: 1, Chunk: 1, ChunkOffset: 50}}})))
	w.check()
}

func TestSmallPiecesJoin(t *testing.T) {
	var list []piece
	for i := range uint64(1000) {
		list = append(list, piece{off: i, len: 1, data: []byte{byte(i)}})
	}
	got := overlay(list)
	if len(got) != 1 || got[0].len != 1000 || !bytes.Equal(got[0].data[254:258], []byte{254, 255, 0, 1}) {
		t.Errorf("joined into %d pieces", len(got))
	}
}

// What is left of a list must not be copied for each piece that cuts into it: a commit of many writes that are not aligned
// to what was written before would hold up all others for seconds.
func TestMergeCopiesNothingTwice(t *testing.T) {
	var under, over []piece
	for i := range uint64(20000) {
		under = append(under, piece{off: i * 8192, len: 8192, chunk: 1, coff: i * 8192})
		over = append(over, piece{off: i*8192 + 1000, len: 4096, chunk: 2, coff: i * 5000})
	}
	for range 2 {
		if n := testing.AllocsPerRun(1, func() { merge(under, over) }); n > 100 {
			t.Errorf("%.0f allocations for %d pieces", n, len(over))
		}
		for i := range over { // now each reaches into the next one below
			over[i].off += 6000
		}
	}
}
