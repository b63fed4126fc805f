package namespace

import (
	"math"
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
	m, total, err := rewriteMap(op)
	if err != nil {
		return nil, err
	}
	to := chunk.ID(op.Chunk)
	cs := newChunkSet(x)
	c, err := cs.get(to)
	if err != nil {
		return nil, err
	}
	if c == nil || c.before.Owner != Rewriter { // dropped, or sealed by repair: its bytes stay where else they are
		return &pb.Result{}, nil
	}
	if total > op.Length {
		return nil, fserr.New(syscall.EINVAL, "chunk %v: %d bytes of others in %d", to, total, op.Length)
	}
	if err := c.publish(&pb.ChunkCommit{Chunk: op.Chunk, Length: op.Length, Servers: op.Servers, Seal: op.Seal}); err != nil {
		return nil, err
	}
	if c.Length != op.Length {
		return nil, fserr.New(syscall.EINVAL, "chunk %v has %d bytes, not %d", to, c.Length, op.Length)
	}
	res := &pb.Result{}
	for _, b := range op.Blocks {
		n, err := x.remapBlock(m, b.GetInode(), b.GetBlock(), cs)
		if err == errCrowded { // it is only written elsewhere less well
			continue
		}
		if err != nil {
			return nil, err
		}
		res.Bytes += n
	}
	return res, cs.flush()
}

// rewriteMap says where the ranges of a rewrite are in its chunk, one after the other, and how many bytes they are.
func rewriteMap(op *pb.FinishRewrite) (m remap, total uint64, err error) {
	if len(op.Ranges) > MaxRewriteRanges || len(op.Blocks) > MaxRewriteBlocks {
		return nil, 0, fserr.New(syscall.EINVAL, "%d ranges and %d blocks to rewrite, at most %d and %d", len(op.Ranges), len(op.Blocks), MaxRewriteRanges, MaxRewriteBlocks)
	}
	m = make(remap, 0, len(op.Ranges))
	for _, r := range op.Ranges {
		m = append(m, remapRange{chunk.ID(r.GetChunk()), uint64(r.GetFrom()), uint64(r.GetTo()), chunk.ID(op.Chunk), total})
		total += uint64(r.GetTo()) - uint64(r.GetFrom())
	}
	return m, total, m.prepare()
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
