package namespace

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Rewriter owns the chunks that the leader itself has made out of bytes of others. It is no session: no session ever gets
// that number, none counts these chunks, and what one leader left unfinished the next one drops.
const Rewriter = math.MaxUint64

// Bounds of one rewrite. Applying a command holds up all others.
const (
	MaxRewrites      = 1024 // under way
	MaxRewriteRanges = 4096 // in one FinishRewrite
	MaxRewriteBlocks = 4096 // likewise
)

// startRewrite takes a chunk for the leader itself.
func (x *tx) startRewrite(op *pb.StartRewrite) (*pb.Result, error) {
	layout := chunk.LayoutOf(op.Layout)
	if err := x.mayAlloc(layout, 1, len(op.Candidates)); err != nil {
		return nil, err
	}
	if n := len(numbersUnder(x, bOwned, Rewriter)); n >= MaxRewrites {
		return nil, fserr.New(syscall.EAGAIN, "%d chunks are being rewritten, at most %d", n, MaxRewrites)
	}
	candidates := x.eligible(op.Candidates, nil, layout.Min)
	if len(candidates) < layout.Min {
		return nil, tooFew(len(candidates), layout)
	}
	return &pb.Result{Chunks: []*pb.AllocatedChunk{x.newChunk(Rewriter, layout, candidates)}}, nil
}

// finishRewrite publishes such a chunk and has extents refer to it.
func (x *tx) finishRewrite(op *pb.FinishRewrite) (*pb.Result, error) {
	m, err := newRemap(op)
	if err != nil {
		return nil, err
	}
	cs := newChunkSet(x)
	c, err := cs.get(m.to)
	if err != nil {
		return nil, err
	}
	if c == nil || c.before.Owner != Rewriter { // dropped, or sealed by repair: its bytes stay where else they are
		return &pb.Result{}, nil
	}
	if m.length > op.Length {
		return nil, fserr.New(syscall.EINVAL, "chunk %v: %d bytes of others in %d", m.to, m.length, op.Length)
	}
	if err := c.publish(&pb.ChunkCommit{Chunk: op.Chunk, Length: op.Length, Servers: op.Servers, Seal: op.Seal}); err != nil {
		return nil, err
	}
	if c.Length != op.Length {
		return nil, fserr.New(syscall.EINVAL, "chunk %v has %d bytes, not %d", m.to, c.Length, op.Length)
	}
	res := &pb.Result{}
	for _, b := range op.Blocks {
		n, err := x.remapBlock(m, b.GetInode(), b.GetBlock(), cs)
		if err != nil {
			return nil, err
		}
		res.Bytes += n
	}
	return res, cs.flush()
}

// dropRewrites gives such chunks up. One that extents refer to already stays, sealed.
func (x *tx) dropRewrites(op *pb.DropRewrites) (*pb.Result, error) {
	if len(op.Chunks) > MaxRewrites {
		return nil, fserr.New(syscall.EINVAL, "%d rewrites to drop, at most %d", len(op.Chunks), MaxRewrites)
	}
	cs := newChunkSet(x)
	for _, id := range op.Chunks {
		c, err := cs.get(chunk.ID(id))
		if err != nil {
			return nil, err
		}
		if c != nil && c.before.Owner == Rewriter {
			c.Owner = 0
		}
	}
	return &pb.Result{}, cs.flush()
}

// remap says where bytes of chunks are in a new one.
type remap struct {
	to     chunk.ID
	ranges []remapRange // sorted by source, without overlap
	length uint64       // of all ranges
}

type remapRange struct {
	chunk    chunk.ID
	from, to uint64 // in it
	at       uint64 // in the new chunk
}

func newRemap(op *pb.FinishRewrite) (*remap, error) {
	if len(op.Ranges) > MaxRewriteRanges || len(op.Blocks) > MaxRewriteBlocks {
		return nil, fserr.New(syscall.EINVAL, "%d ranges and %d blocks to rewrite, at most %d and %d", len(op.Ranges), len(op.Blocks), MaxRewriteRanges, MaxRewriteBlocks)
	}
	m := &remap{to: chunk.ID(op.Chunk), ranges: make([]remapRange, 0, len(op.Ranges))}
	for _, r := range op.Ranges {
		from, to := uint64(r.GetFrom()), uint64(r.GetTo())
		if from >= to || to > chunk.MaxLength || r.Chunk == op.Chunk {
			return nil, fserr.New(syscall.EINVAL, "bytes %d to %d of chunk %v to be rewritten into %v", from, to, chunk.ID(r.GetChunk()), m.to)
		}
		m.ranges = append(m.ranges, remapRange{chunk.ID(r.Chunk), from, to, m.length})
		m.length += to - from
	}
	slices.SortFunc(m.ranges, func(a, b remapRange) int { return cmp.Or(cmp.Compare(a.chunk, b.chunk), cmp.Compare(a.from, b.from)) })
	for i := 1; i < len(m.ranges); i++ {
		if a, b := m.ranges[i-1], m.ranges[i]; a.chunk == b.chunk && b.from < a.to {
			return nil, fserr.New(syscall.EINVAL, "chunk %v: two ranges to be rewritten overlap at %d", b.chunk, b.from)
		}
	}
	return m, nil
}

// first is the index of the first range of a chunk that ends behind an offset.
func (m *remap) first(id chunk.ID, offset uint64) int {
	return sort.Search(len(m.ranges), func(i int) bool {
		r := &m.ranges[i]
		return r.chunk > id || r.chunk == id && r.to > offset
	})
}

// touches tells whether some of a piece lies in a range.
func (m *remap) touches(p *piece) bool {
	i := m.first(p.chunk, p.coff)
	return i < len(m.ranges) && m.ranges[i].chunk == p.chunk && m.ranges[i].from < p.coff+p.len
}

// apply appends a piece to a list, with what of it lies in ranges referring to the new chunk.
func (m *remap) apply(list []piece, p piece) []piece {
	for i := m.first(p.chunk, p.coff); i < len(m.ranges); i++ {
		r := &m.ranges[i]
		if r.chunk != p.chunk || r.from >= p.coff+p.len {
			break
		}
		if r.from > p.coff {
			list = appendPiece(list, p.cut(p.off, p.off+r.from-p.coff))
			p = p.cut(p.off+r.from-p.coff, p.end())
		}
		n := min(r.to, p.coff+p.len) - p.coff
		list = appendPiece(list, piece{off: p.off, len: n, chunk: m.to, coff: r.at + p.coff - r.from})
		if n == p.len {
			return list
		}
		p = p.cut(p.off+n, p.end())
	}
	return appendPiece(list, p)
}

// remapBlock has the extents of a block of a file refer to the new chunk where they lie in its ranges. It returns how many
// bytes that concerns. The file's contents stay the same, and so does its inode. A file that is gone, or a block, has none.
func (x *tx) remapBlock(m *remap, num, number uint64, cs *chunkSet) (uint64, error) {
	key := extentKey(num, number)
	stored := x.Get(bExtent, key)
	if stored == nil {
		return 0, nil
	}
	b, err := parseBlock(number, stored)
	if err != nil {
		return 0, damaged(bExtent, key)
	}
	list, err := b.pieces(0, b.count())
	if err != nil {
		return 0, damaged(bExtent, key)
	}
	var before, after, all []piece
	var moved uint64
	for _, p := range list {
		if !m.touches(&p) {
			all = appendPiece(all, p)
			continue
		}
		parts := m.apply(nil, p)
		before, after = append(before, p), append(after, parts...)
		for i := range parts {
			if parts[i].chunk == m.to {
				moved += parts[i].len
			}
			all = appendPiece(all, parts[i])
		}
	}
	// Cut into more pieces than a block may have, it stays as it is: it is only written elsewhere less well.
	if moved == 0 || len(all) > maxBlockExtents {
		return 0, nil
	}
	in, err := getInode(x, num)
	if err != nil {
		return 0, damaged(bExtent, key) // of no file
	}
	if err := x.account(in, before, after, cs); err != nil {
		return 0, err
	}
	v := b.appendPieces(append(make([]byte, 0, 1+len(all)*extentSize), formatVersion), all)
	return moved, x.putBlock(in, number, v)
}

// Rewrites lists the chunks that StartRewrite took and that are not finished.
func Rewrites(r kv.Reader) []chunk.ID {
	numbers := numbersUnder(r, bOwned, Rewriter)
	out := make([]chunk.ID, len(numbers))
	for i, n := range numbers {
		out[i] = chunk.ID(n)
	}
	return out
}

// FileBlock is a part of a file of posix.ExtentBlock bytes.
type FileBlock struct{ Inode, Number uint64 }

// Next is the smallest one behind it.
func (b FileBlock) Next() FileBlock { return FileBlock{b.Inode, b.Number + 1} }

// BlockExtents is the extents of a FileBlock in chunks. It is valid as long as the View that it comes from.
type BlockExtents struct {
	FileBlock
	b block
}

// Extent is a range of a file that lies in a chunk.
type Extent struct {
	Offset, Length uint64 // in the file, bytes
	Chunk          chunk.ID
	ChunkOffset    uint64
}

// Len is how many there are; At returns the i-th. What is damaged has them as it is stored.
func (e BlockExtents) Len() int { return e.b.count() }

// At returns one.
func (e BlockExtents) At(i int) Extent {
	p := e.b.at(i)
	return Extent{p.off, p.len, p.chunk, p.coff}
}

// Blocks calls fn for every block of any file from one on that has extents in chunks, in the order of inodes and numbers, until
// it returns false. What cannot be read is left out.
func Blocks(r kv.Reader, from FileBlock, fn func(BlockExtents) bool) {
	r.Scan(bExtent, extentKey(from.Inode, from.Number), func(k, v []byte) bool {
		if len(k) != 16 {
			return true
		}
		at := FileBlock{be64(k), be64(k[8:])}
		b, err := parseBlock(at.Number, v)
		return err != nil || fn(BlockExtents{at, b})
	})
}

// BlockEnd is where a FileBlock ends in its file.
func (b FileBlock) BlockEnd() uint64 { return (b.Number + 1) * posix.ExtentBlock }
