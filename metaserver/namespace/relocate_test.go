package namespace

import (
	"fmt"
	"slices"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func opRelocate(r *pb.Relocate) *pb.Op { return &pb.Op{Op: &pb.Op_Relocate{Relocate: r}} }

// relocate writes what files have in chunks again, some of it, and has the extents of one file refer to it. Contents stay what they
// were, and so do the files.
func (m *model) relocate(t *rapid.T, w *world) {
	var nums []uint64
	for num, n := range m.nodes {
		if n.typ == syscall.S_IFREG {
			nums = append(nums, num)
		}
	}
	if len(nums) == 0 {
		return
	}
	slices.Sort(nums)
	op := &pb.Relocate{Inode: rapid.SampledFrom(nums).Draw(t, "file")}
	c := w.want(0, w.do(root, opAlloc(1, 1, 2, 3))).Chunks[0]
	var content []modelByte
	Blocks(w.s, FileBlock{Inode: op.Inode}, func(b BlockExtents) bool {
		if b.Inode != op.Inode {
			return false
		}
		if rapid.IntRange(0, 4).Draw(t, "the block") > 0 {
			op.Blocks = append(op.Blocks, b.Number)
		}
		for i := range b.Len() {
			e := b.At(i)
			r := &pb.RelocatedRange{Chunk: uint64(e.Chunk), From: uint32(e.ChunkOffset), To: uint32(e.ChunkOffset + e.Length), Target: c.Id}
			r.From += uint32(rapid.IntRange(0, int(r.To-r.From)-1).Draw(t, "later"))
			if slices.ContainsFunc(op.Ranges, func(o *pb.RelocatedRange) bool { return o.Chunk == r.Chunk && o.From < r.To && r.From < o.To }) {
				continue
			}
			for range rapid.IntRange(0, 3).Draw(t, "other bytes") {
				content = append(content, modelByte{value: 1})
			}
			r.At = uint32(len(content))
			op.Ranges = append(op.Ranges, r)
			for off := r.From; off < r.To; off++ {
				content = append(content, m.rewrites.origin(r.Chunk, uint64(off)))
			}
		}
		return true
	})
	w.s.settle(w)
	op.Chunks = []*pb.ChunkCommit{{Chunk: c.Id, Length: uint64(len(content)), Servers: c.Servers, Seal: rapid.Bool().Draw(t, "seal")}}
	if m.rewrites.content == nil {
		m.rewrites.content = map[uint64][]modelByte{}
	}
	m.rewrites.content[c.Id] = content
	before := w.attr(op.Inode).String()
	res := w.want(0, w.do(root, opRelocate(op)))
	if again := w.apply(w.last); !proto.Equal(res, again) {
		w.Fatalf("a retry: %v, first %v", again, res)
	}
	if after := w.attr(op.Inode).String(); after != before {
		w.Fatalf("inode %d: %s, before %s", op.Inode, after, before)
	}
	if !op.Chunks[0].Seal {
		if again := w.want(0, w.do(root, opRelocate(op))); again.Bytes != 0 {
			w.Fatalf("relocated again: %v", again)
		}
	}
	m.compare(w)
}

// cut ends a chunk, of this session or sealed, somewhere behind all that refers to it.
func (m *model) cut(t *rapid.T, w *world) {
	ends := map[uint64]uint64{}
	var ids []uint64
	Blocks(w.s, FileBlock{}, func(b BlockExtents) bool {
		for i := range b.Len() {
			e := b.At(i)
			if id := uint64(e.Chunk); ends[id] == 0 {
				ids = append(ids, id)
			}
			ends[uint64(e.Chunk)] = max(ends[uint64(e.Chunk)], e.ChunkOffset+e.Length)
		}
		return true
	})
	w.s.settle(w)
	if len(ids) == 0 {
		return
	}
	id := rapid.SampledFrom(ids).Draw(t, "chunk")
	c, ok := Chunk(w.s, chunk.ID(id))
	if !ok || c.Owner == Rewriter {
		return
	}
	end := uint64(c.Layout.Padded(int(ends[id]))) + uint64(c.Layout.Row())*rapid.Uint64Range(0, 3).Draw(t, "rest")
	w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: id, Length: end, Servers: []uint32{1, 2}, Seal: true, Cut: true})))
	delete(m.chunks, id)
	want := c.Length
	if c.Live <= end { // else bytes of it are used twice
		want = min(want, end)
	}
	if after, ok := Chunk(w.s, chunk.ID(id)); !ok || after.Owner != 0 || after.Length != want || after.Live != c.Live {
		w.Fatalf("cut at %d: %+v, before %+v", end, after, c)
	}
	m.compare(w)
}

// relocating is a world with a file of 100 bytes in chunk 1, which is open, and chunk 2 of the same session.
func relocating(t *testing.T) (w *world, file uint64, servers []uint32) {
	w = newWorld(t)
	file = w.file(root, 1, "f", 0o644)
	c := w.want(0, w.do(root, opAlloc(2, 1, 2, 3))).Chunks
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: file, Extents: []*pb.Extent{{Length: 100, Chunk: 1, ChunkOffset: 1000}},
		Chunks: []*pb.ChunkCommit{{Chunk: 1, Length: 2000, Servers: c[0].Servers}}})))
	return w, file, c[1].Servers
}

func TestRelocateMovesWhatIsStillThere(t *testing.T) {
	w, f, servers := relocating(t)
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Offset: 40, Length: 5, Data: []byte("hello")}}})))
	w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: f, Size: new(uint64(90))})))
	// All servers of chunk 1 lost power, and then the session ended: what it had published is kept.
	for s := range uint32(3) {
		w.want(0, w.own(&pb.Op{Op: &pb.Op_LoseShards{LoseShards: &pb.LoseShards{Server: s + 1, Stored: []uint64{1}}}}))
	}
	if c, _ := Chunk(w.s, 1); !c.info().Open {
		t.Error("a chunk that is written does not say so")
	}
	before := w.attr(f)
	op := &pb.Relocate{Inode: f, Blocks: []uint64{0, 7}, Chunks: []*pb.ChunkCommit{{Chunk: 2, Length: 500, Servers: servers}},
		Ranges: []*pb.RelocatedRange{{Chunk: 1, From: 1050, To: 1100, Target: 2, At: 300}, {Chunk: 1, From: 900, To: 1030, Target: 2, At: 7}}}
	if res := w.want(0, w.do(root, opRelocate(op))); res.Bytes != 30+40 {
		t.Errorf("moved %d bytes", res.Bytes)
	}
	if got, want := w.layoutOf(f), "0+30=2@107 30+10=1@1030 40+5=hello 45+5=1@1045 50+40=2@300"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if after := w.attr(f); after.String() != before.String() {
		t.Errorf("the file changed: %v, before %v", after, before)
	}
	w.check()
	// What is left is in the first 1050 bytes, which two of the servers have.
	w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: 1, Length: 1050, Servers: []uint32{1, 3}, Seal: true, Cut: true})))
	c, ok := Chunk(w.s, 1)
	if !ok || c.Owner != 0 || c.Length != 1050 || c.Holders() != 2 || c.info().Open {
		t.Errorf("cut: %+v", c)
	}
	w.check()
	w.want(0, w.do(root, opUnlink(1, "f")))
	for id := range chunk.ID(2) {
		if c, ok := Chunk(w.s, id+1); ok && c.Owner == 0 {
			t.Errorf("nothing refers to chunk %v", id+1)
		}
	}
	w.check()
}

// TestRelocateUnderAnotherSession: what was published by a session that ended is relocated by the next one, and cut.
func TestRelocateUnderAnotherSession(t *testing.T) {
	w, f, _ := relocating(t)
	for s := range uint32(3) {
		w.want(0, w.own(&pb.Op{Op: &pb.Op_LoseShards{LoseShards: &pb.LoseShards{Server: s + 1, Stored: []uint64{1}}}}))
	}
	w.want(0, w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{w.session}}}}))
	w.session, w.seq = w.open(9), 0
	if c, ok := Chunk(w.s, 1); !ok || slices.Contains(c.Servers, 0) || len(Deletions(w.s, 1, w.clock+1, 9)) != 1 {
		t.Fatalf("what servers have of a chunk of which all lost the end is to be deleted: %+v", c) // of chunk 2 it is
	}
	w.check()
	c := w.want(0, w.do(root, opAlloc(1, 1, 2, 3))).Chunks[0]
	op := &pb.Relocate{Inode: f, Blocks: []uint64{0}, Chunks: []*pb.ChunkCommit{{Chunk: c.Id, Length: 90, Servers: c.Servers}},
		Ranges: []*pb.RelocatedRange{{Chunk: 1, From: 1010, To: 1100, Target: c.Id}}}
	w.want(0, w.do(root, opRelocate(op)))
	w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: 1, Length: 1010, Servers: []uint32{1, 2}, Seal: true, Cut: true})))
	if got, want := w.layoutOf(f), fmt.Sprintf("0+10=1@1000 10+90=%d@0", c.Id); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if c, ok := Chunk(w.s, 1); !ok || c.Length != 1010 || c.Holders() != 2 {
		t.Errorf("cut: %+v", c)
	}
	w.check()
	// Of a file that is gone nothing is left to be moved.
	w.want(0, w.do(root, opUnlink(1, "f")))
	if res := w.want(0, w.do(root, opRelocate(op))); res.Bytes != 0 {
		t.Errorf("moved %d bytes of no file", res.Bytes)
	}
	w.check()
}

func TestRelocateIsRefused(t *testing.T) {
	w, f, servers := relocating(t)
	target := []*pb.ChunkCommit{{Chunk: 2, Length: 100, Servers: servers}}
	whole := []*pb.RelocatedRange{{Chunk: 1, From: 1000, To: 1100, Target: 2}}
	for name, r := range map[string]*pb.Relocate{
		"too few servers":     {Ranges: whole, Chunks: []*pb.ChunkCommit{{Chunk: 2, Length: 100, Servers: servers[:1]}}},
		"beyond the target":   {Ranges: []*pb.RelocatedRange{{Chunk: 1, From: 1000, To: 1100, Target: 2, At: 1}}, Chunks: target},
		"not published":       {Ranges: whole},
		"into itself":         {Ranges: []*pb.RelocatedRange{{Chunk: 1, From: 1000, To: 1100, Target: 1}}},
		"no target":           {Ranges: []*pb.RelocatedRange{{Chunk: 1, From: 1000, To: 1100, Target: 77}}, Chunks: target},
		"an empty range":      {Ranges: []*pb.RelocatedRange{{Chunk: 1, From: 5, To: 5, Target: 2}}, Chunks: target},
		"overlapping sources": {Ranges: append(whole, &pb.RelocatedRange{Chunk: 1, From: 1099, To: 1101, Target: 2}), Chunks: target},
		"too many ranges":     {Ranges: make([]*pb.RelocatedRange, MaxRelocateRanges+1)},
		"too many blocks":     {Ranges: whole, Chunks: target, Blocks: make([]uint64, MaxRelocateBlocks+1)},
	} {
		r.Inode = f
		if len(r.Blocks) == 0 {
			r.Blocks = []uint64{0}
		}
		before := w.layoutOf(f)
		if res := w.do(root, opRelocate(r)); res.Errno != uint32(syscall.EINVAL) {
			t.Errorf("%s: %v", name, res)
		}
		if got := w.layoutOf(f); got != before {
			t.Errorf("%s: %s, before %s", name, got, before)
		}
		w.check()
	}
	w.want(syscall.EINVAL, w.own(opRelocate(&pb.Relocate{Inode: f})))
	// More live bytes than are said to be left: it is sealed as it is.
	w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: 1, Length: 99, Servers: servers, Cut: true})))
	if c, _ := Chunk(w.s, 1); c.Length != 2000 || c.Owner != 0 {
		t.Errorf("cut: %+v", c)
	}
	w.check()
}
