package namespace

import (
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Bounds of one relocation. Applying a command holds up all others.
const (
	MaxRelocateRanges = 4096
	MaxRelocateBlocks = 4096
)

// relocate has extents of a file refer to where a client wrote their bytes again. The old place is not asked for anything: it may
// be of another session, sealed, lost or gone.
func (x *tx) relocate(op *pb.Relocate) (*pb.Result, error) {
	if len(op.Ranges) > MaxRelocateRanges || len(op.Blocks) > MaxRelocateBlocks {
		return nil, fserr.New(syscall.EINVAL, "%d ranges and %d blocks to relocate, at most %d and %d", len(op.Ranges), len(op.Blocks), MaxRelocateRanges, MaxRelocateBlocks)
	}
	m := make(remap, 0, len(op.Ranges))
	for _, r := range op.Ranges {
		m = append(m, remapRange{chunk.ID(r.GetChunk()), uint64(r.GetFrom()), uint64(r.GetTo()), chunk.ID(r.GetTarget()), uint64(r.GetAt())})
	}
	if err := m.prepare(); err != nil {
		return nil, err
	}
	cs := newChunkSet(x)
	if err := cs.publish(op.Chunks); err != nil {
		return nil, err
	}
	for _, r := range m {
		if err := cs.mayRefer(&piece{len: r.to - r.from, chunk: r.target, coff: r.at}); err != nil {
			return nil, err
		}
	}
	res := &pb.Result{}
	for _, number := range op.Blocks {
		n, err := x.remapBlock(m, op.Inode, number, cs)
		if err != nil {
			return nil, err
		}
		res.Bytes += n
	}
	return res, cs.flush()
}

// cut ends a chunk before its committed length: what came behind was lost, and nothing refers to it any more. Whoever held more
// still holds what is left, and so do the servers that are named, as far as they have a shard. Where that cannot be so, the chunk is
// only sealed.
func (c *changedChunk) cut(cc *pb.ChunkCommit) error {
	if cc.Length%uint64(c.Layout.Row()) != 0 {
		return fserr.New(syscall.EINVAL, "chunk %v is to be cut at %d, which is within a row of %d", c.ID, cc.Length, c.Layout.Row())
	}
	c.Owner = 0
	held := c.Held
	for _, s := range cc.Servers {
		if shard := c.ShardOn(chunk.ServerID(s)); s != 0 && shard >= 0 {
			held |= 1 << shard
		}
	}
	if cc.Length < c.Length && c.Live <= cc.Length && held != 0 {
		c.Length, c.Held = cc.Length, held
	}
	return nil
}
