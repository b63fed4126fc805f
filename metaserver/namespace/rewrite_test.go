package namespace

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func opStartRewrite(l chunk.Layout, servers ...uint32) *pb.Op {
	return &pb.Op{Op: &pb.Op_StartRewrite{StartRewrite: &pb.StartRewrite{Layout: l.Proto(), Candidates: opAlloc(1, servers...).GetAllocChunks().Candidates}}}
}
func opFinishRewrite(f *pb.FinishRewrite) *pb.Op {
	return &pb.Op{Op: &pb.Op_FinishRewrite{FinishRewrite: f}}
}
func opDropRewrites(chunks ...uint64) *pb.Op {
	return &pb.Op{Op: &pb.Op_DropRewrites{DropRewrites: &pb.DropRewrites{Chunks: chunks}}}
}

// rewrites is what the model knows of chunks that the leader made.
type rewrites struct {
	content map[uint64][]modelByte // of each, where its bytes were first written
	open    []*pb.FinishRewrite    // not sealed or dropped yet
}

// origin is where the byte at an offset of a chunk was first written.
func (r *rewrites) origin(id, off uint64) modelByte {
	c, made := r.content[id]
	if !made {
		return modelByte{chunk: id, coff: off}
	}
	if off >= uint64(len(c)) {
		return modelByte{chunk: id, value: 1} // padding, which nothing may refer to
	}
	return c[off]
}

// startRewrite plans a rewrite of what files have now, and takes a chunk for it.
func (m *model) startRewrite(t *rapid.T, w *world) {
	if len(m.rewrites.open) >= 3 {
		return
	}
	f := &pb.FinishRewrite{}
	ranges := &pb.FinishRewrite{} // that do not overlap yet
	for num, n := range m.nodes {
		if n.typ != syscall.S_IFREG {
			continue
		}
		Blocks(w.s, FileBlock{Inode: num}, func(b BlockExtents) bool {
			if b.Inode != num {
				return false
			}
			f.Blocks = append(f.Blocks, &pb.FileBlock{Inode: num, Block: b.Number})
			for i := range b.Len() {
				e := b.At(i)
				ranges.Ranges = append(ranges.Ranges, &pb.RewriteRange{Chunk: uint64(e.Chunk), From: uint32(e.ChunkOffset), To: uint32(e.ChunkOffset + e.Length)})
			}
			return true
		})
	}
	w.s.settle(w)
	slices.SortFunc(f.Blocks, func(a, b *pb.FileBlock) int { return int(a.Inode*1000+a.Block) - int(b.Inode*1000+b.Block) }) // not by the order of a map
	slices.SortFunc(ranges.Ranges, func(a, b *pb.RewriteRange) int {
		return strings.Compare(fmt.Sprintf("%020d %020d %020d", a.Chunk, a.From, a.To), fmt.Sprintf("%020d %020d %020d", b.Chunk, b.From, b.To))
	})
	var content []modelByte
	for _, i := range rapid.Permutation(indexes(len(ranges.Ranges))).Draw(t, "order") {
		r := ranges.Ranges[i]
		switch rapid.IntRange(0, 5).Draw(t, "what") {
		case 0:
			continue // stays where it is
		case 1:
			r.From += uint32(rapid.IntRange(0, int(r.To-r.From)-1).Draw(t, "later"))
		case 2:
			r.To -= uint32(rapid.IntRange(0, int(r.To-r.From)-1).Draw(t, "earlier"))
		}
		if slices.ContainsFunc(f.Ranges, func(o *pb.RewriteRange) bool { return o.Chunk == r.Chunk && o.From < r.To && r.From < o.To }) {
			continue
		}
		f.Ranges = append(f.Ranges, r)
		for off := r.From; off < r.To; off++ {
			content = append(content, m.rewrites.origin(r.Chunk, uint64(off)))
		}
	}
	layout := rapid.SampledFrom([]chunk.Layout{chunk.Copies(3), chunk.Copies(1), {Data: 2, Parity: 1, Min: 2, Cell: 512}}).Draw(t, "layout")
	c := w.want(0, w.own(opStartRewrite(layout, 1, 2, 3, 4))).Chunks[0]
	f.Chunk, f.Servers, f.Length = c.Id, c.Servers, uint64(layout.Padded(len(content)))
	if m.rewrites.content == nil {
		m.rewrites.content = map[uint64][]modelByte{}
	}
	m.rewrites.content[c.Id] = content
	m.rewrites.open = append(m.rewrites.open, f)
}

func indexes(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// finishRewrite remaps some blocks or all; the contents of files stay what they were, and so do the files themselves.
func (m *model) finishRewrite(t *rapid.T, w *world) {
	if len(m.rewrites.open) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.rewrites.open)-1).Draw(t, "rewrite")
	f := m.rewrites.open[i]
	part := &pb.FinishRewrite{Chunk: f.Chunk, Length: f.Length, Ranges: f.Ranges, Servers: f.Servers, Seal: rapid.Bool().Draw(t, "seal")}
	for _, b := range f.Blocks {
		if part.Seal || rapid.Bool().Draw(t, "now") {
			part.Blocks = append(part.Blocks, b)
		}
	}
	before := map[uint64]string{}
	for num := range m.nodes {
		before[num] = w.attr(num).String()
	}
	w.want(0, w.own(opFinishRewrite(part)))
	if again := w.want(0, w.own(opFinishRewrite(part))); again.Bytes != 0 {
		w.Fatalf("a rewrite was done again: %v", again)
	}
	for num, a := range before {
		if got := w.attr(num).String(); got != a {
			w.Fatalf("inode %d: %s, before %s", num, got, a)
		}
	}
	if part.Seal {
		m.rewrites.open = slices.Delete(m.rewrites.open, i, i+1)
	}
	m.compare(w)
}

func (m *model) dropRewrite(t *rapid.T, w *world) {
	if len(m.rewrites.open) == 0 {
		return
	}
	var ids []uint64
	for _, id := range Rewrites(w.s) { // as a new leader does
		ids = append(ids, uint64(id))
	}
	w.s.settle(w)
	w.want(0, w.own(opDropRewrites(ids...)))
	if left := Rewrites(w.s); len(left) > 0 {
		w.Fatalf("not dropped: %v", left)
	}
	for _, f := range m.rewrites.open {
		if again := w.want(0, w.own(opFinishRewrite(f))); again.Bytes != 0 {
			w.Fatalf("a dropped rewrite was done: %v", again)
		}
	}
	m.rewrites.open = nil
}

// randomRewrite is any command about rewrites, nonsense too.
func randomRewrite(t *rapid.T) *pb.Op {
	small := func(what string) uint64 { return rapid.Uint64Range(0, 12).Draw(t, what) }
	switch rapid.IntRange(0, 3).Draw(t, "rewrite") {
	case 0:
		return opStartRewrite(chunk.Copies(2), 1, 2, 3, 4)
	case 1:
		return opDropRewrites(small("chunk"), small("chunk"))
	}
	f := &pb.FinishRewrite{Chunk: small("chunk"), Length: 10 * small("length"), Servers: []uint32{1, 2, 3, 4}[:small("servers")%5], Seal: rapid.Bool().Draw(t, "seal")}
	for range small("ranges") / 2 {
		from := uint32(small("from"))
		f.Ranges = append(f.Ranges, &pb.RewriteRange{Chunk: small("source"), From: from, To: from + uint32(small("bytes"))})
	}
	for num := range small("blocks") {
		f.Blocks = append(f.Blocks, &pb.FileBlock{Inode: num})
	}
	return opFinishRewrite(f)
}

// rewriting is a world with a file of 100 bytes in chunk 1, which is sealed and on three servers.
func rewriting(t *testing.T) (w *world, file uint64) {
	w = newWorld(t)
	file = w.file(root, 1, "f", 0o644)
	c := w.want(0, w.do(root, opAlloc(1, 1, 2, 3))).Chunks[0]
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: file, Extents: []*pb.Extent{{Length: 100, Chunk: c.Id, ChunkOffset: 1000}},
		Chunks: []*pb.ChunkCommit{{Chunk: c.Id, Length: 2000, Servers: c.Servers, Seal: true}}})))
	return w, file
}

func TestRewriteMovesWhatIsStillThere(t *testing.T) {
	w, f := rewriting(t)
	r := w.want(0, w.own(opStartRewrite(chunk.Copies(2), 1, 2))).Chunks[0]
	if c, ok := Chunk(w.s, chunk.ID(r.Id)); !ok || c.Owner != Rewriter || len(Rewrites(w.s)) != 1 || Owned(w.s) != 1 {
		t.Fatalf("taken: %+v", c)
	}
	w.check()
	// Meanwhile the middle is overwritten, and the end cut off.
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Offset: 40, Length: 5, Data: []byte("hello")}}})))
	w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: f, Size: new(uint64(90))})))
	before := w.attr(f)
	finish := &pb.FinishRewrite{Chunk: r.Id, Length: 80, Servers: r.Servers, Seal: true,
		Ranges: []*pb.RewriteRange{{Chunk: 1, From: 1050, To: 1100}, {Chunk: 1, From: 1000, To: 1030}}, Blocks: []*pb.FileBlock{{Inode: f}, {Inode: f, Block: 7}, {Inode: 999}}}
	if res := w.want(0, w.own(opFinishRewrite(finish))); res.Bytes != 30+40 {
		t.Errorf("moved %d bytes", res.Bytes)
	}
	if got, want := w.layoutOf(f), fmt.Sprintf("0+30=%d@50 30+10=1@1030 40+5=hello 45+5=1@1045 50+40=%d@0", r.Id, r.Id); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if after := w.attr(f); after.String() != before.String() {
		t.Errorf("the file changed: %v, before %v", after, before)
	}
	if c, ok := Chunk(w.s, chunk.ID(r.Id)); !ok || c.Owner != 0 || c.Live != 70 || c.Length != 80 || !c.Full() || len(Rewrites(w.s)) != 0 {
		t.Errorf("finished: %+v", c)
	}
	w.check()
	// What is left of the old chunk goes with what refers to it.
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Offset: 30, Length: 20, Data: make([]byte, 20)}}})))
	if _, ok := Chunk(w.s, 1); ok || len(Deletions(w.s, 1, w.clock+1, 9)) != 1 {
		t.Error("a chunk without live bytes is still there")
	}
	w.check()
}

func TestRewriteThatComesTooLate(t *testing.T) {
	for name, spoil := range map[string]func(w *world, f uint64, id uint64){
		"unlinked": func(w *world, f, _ uint64) { w.want(0, w.do(root, opUnlink(1, "f"))) },
		"overwritten": func(w *world, f, _ uint64) {
			w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 100, Data: make([]byte, 100)}}})))
		},
		"dropped": func(w *world, f, id uint64) { w.want(0, w.own(opDropRewrites(id))) },
	} {
		t.Run(name, func(t *testing.T) {
			w, f := rewriting(t)
			r := w.want(0, w.own(opStartRewrite(chunk.Copies(2), 1, 2))).Chunks[0]
			spoil(w, f, r.Id)
			res := w.want(0, w.own(opFinishRewrite(&pb.FinishRewrite{Chunk: r.Id, Length: 100, Servers: r.Servers, Seal: true,
				Ranges: []*pb.RewriteRange{{Chunk: 1, From: 1000, To: 1100}}, Blocks: []*pb.FileBlock{{Inode: f}}})))
			if _, ok := Chunk(w.s, chunk.ID(r.Id)); ok || res.Bytes != 0 {
				t.Errorf("there is a new chunk: %v", res)
			}
			for _, s := range r.Servers {
				if len(Deletions(w.s, chunk.ServerID(s), w.clock+1, 9)) == 0 {
					t.Errorf("server %d is not told to delete it", s)
				}
			}
			w.check()
		})
	}
}

// TestRewriteInParts: a chunk whose blocks are remapped by several commands is not deleted before the last one, and one that is
// dropped half-way keeps what it has.
func TestRewriteInParts(t *testing.T) {
	w, f := rewriting(t)
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Offset: posix.ExtentBlock, Length: 50, Data: make([]byte, 50)}}})))
	r := w.want(0, w.own(opStartRewrite(chunk.Copies(2), 1, 2))).Chunks[0]
	finish := func(seal bool, blocks ...*pb.FileBlock) *pb.Result {
		return w.want(0, w.own(opFinishRewrite(&pb.FinishRewrite{Chunk: r.Id, Length: 100, Servers: r.Servers, Seal: seal,
			Ranges: []*pb.RewriteRange{{Chunk: 1, From: 1000, To: 1100}}, Blocks: blocks})))
	}
	finish(false, &pb.FileBlock{Inode: f, Block: 1})
	if c, ok := Chunk(w.s, chunk.ID(r.Id)); !ok || c.Owner != Rewriter || c.Length != 100 {
		t.Errorf("after the first part: %+v", c)
	}
	w.check()
	if res := finish(false, &pb.FileBlock{Inode: f}); res.Bytes != 100 {
		t.Errorf("moved %d", res.Bytes)
	}
	w.check()
	w.want(0, w.own(opDropRewrites(r.Id)))
	if c, ok := Chunk(w.s, chunk.ID(r.Id)); !ok || c.Owner != 0 || c.Live != 100 {
		t.Errorf("dropped: %+v", c)
	}
	w.check()
}

func TestRewriteIsRefused(t *testing.T) {
	w, f := rewriting(t)
	code := chunk.Layout{Data: 2, Parity: 1, Min: 3, Cell: 512}
	r := w.want(0, w.own(opStartRewrite(code, 1, 2, 3))).Chunks[0]
	whole := []*pb.RewriteRange{{Chunk: 1, From: 1000, To: 1100}}
	for name, f := range map[string]*pb.FinishRewrite{
		"too few servers":       {Length: 1024, Servers: r.Servers[:2], Ranges: whole},
		"another server":        {Length: 1024, Servers: []uint32{4, r.Servers[1], r.Servers[2]}, Ranges: whole},
		"not a row":             {Length: 100, Servers: r.Servers, Ranges: whole},
		"too short":             {Length: 1024, Servers: r.Servers, Ranges: []*pb.RewriteRange{{Chunk: 1, To: 1025}}},
		"too long":              {Length: chunk.MaxLength + 1024, Servers: r.Servers, Ranges: whole},
		"overlapping ranges":    {Length: 1024, Servers: r.Servers, Ranges: append(whole, &pb.RewriteRange{Chunk: 1, From: 900, To: 1001})},
		"an empty range":        {Length: 1024, Servers: r.Servers, Ranges: []*pb.RewriteRange{{Chunk: 1, From: 5, To: 5}}},
		"a range out of it":     {Length: 1024, Servers: r.Servers, Ranges: []*pb.RewriteRange{{Chunk: r.Id, To: 5}}},
		"a range beyond chunks": {Length: 1024, Servers: r.Servers, Ranges: []*pb.RewriteRange{{Chunk: 1, From: chunk.MaxLength, To: chunk.MaxLength + 1}}},
		"too many ranges":       {Length: 1024, Servers: r.Servers, Ranges: make([]*pb.RewriteRange, MaxRewriteRanges+1)},
		"too many blocks":       {Length: 1024, Servers: r.Servers, Ranges: whole, Blocks: make([]*pb.FileBlock, MaxRewriteBlocks+1)},
	} {
		f.Chunk = r.Id
		before := w.s.dump()
		w.want(syscall.EINVAL, w.own(opFinishRewrite(f)))
		if !slices.Equal(before, w.s.dump()) {
			t.Errorf("%s: the state changed", name)
		}
	}
	// Clients cannot touch it, nor name it.
	w.want(syscall.EINVAL, w.do(root, opSeal(&pb.ChunkCommit{Chunk: r.Id})))
	w.want(syscall.EINVAL, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 1, Chunk: r.Id}}})))
	w.want(syscall.EINVAL, w.do(root, opStartRewrite(code, 1, 2, 3)))
	w.want(syscall.EAGAIN, w.own(opStartRewrite(code, 1, 2)))
	w.want(syscall.EINVAL, w.own(opStartRewrite(chunk.Layout{Data: 2, Parity: 1, Min: 3}, 1, 2, 3)))
	for range MaxRewrites - 1 {
		w.want(0, w.own(opStartRewrite(code, 1, 2, 3)))
	}
	w.want(syscall.EAGAIN, w.own(opStartRewrite(code, 1, 2, 3)))
	w.check()
}
