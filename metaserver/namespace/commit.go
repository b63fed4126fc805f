package namespace

import (
	"slices"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxCommitExtents = 16384
	maxCommitChunks  = 16384
	// maxCommitInline bounds the inline bytes of one command. More than MaxInline can only be right where extents of one
	// command lie over each other.
	maxCommitInline = 16 * posix.MaxInline
)

func (x *tx) commit(op *pb.Commit) (*pb.Result, error) {
	in, err := getInode(x, op.Inode)
	if err != nil {
		return nil, err
	}
	if !in.isFile() {
		return nil, fserr.New(syscall.EINVAL, "a commit to inode %d, which is not a regular file", in.num)
	}
	cs := newChunkSet(x)
	if err := cs.publish(op.Chunks); err != nil {
		return nil, err
	}
	res := &pb.Result{}
	var base uint64
	if op.Append {
		base = in.size
		res.Offset = base
	}
	over, end, err := x.newPieces(op, base, cs)
	if err != nil {
		return nil, err
	}
	end = max(end, op.Size)
	if end > posix.MaxSize {
		return nil, fserr.New(syscall.EFBIG, "a file of %d bytes, at most %d", end, uint64(posix.MaxSize))
	}
	if len(over) > 0 || end > in.size {
		if err := x.publish(in, op, over, end, cs); err != nil {
			return nil, err
		}
	}
	if err := cs.flush(); err != nil {
		return nil, err
	}
	res.Attr = in.attr()
	return res, nil
}

// publish makes new extents and a new size of a file visible.
func (x *tx) publish(in *inode, op *pb.Commit, over []piece, end uint64, cs *chunkSet) error {
	if err := x.writePieces(in, over, cs); err != nil {
		return err
	}
	in.size = max(in.size, end)
	in.dataVersion = x.index
	mtime := op.Mtime
	if mtime == 0 {
		mtime = x.now
	}
	in.mtime = max(in.mtime, mtime)
	if op.KillPrivileges {
		if err := x.killPrivileges(in); err != nil {
			return err
		}
	}
	x.changed(in)
	x.putInode(in)
	return nil
}

// newPieces checks the extents of a commit and returns them sorted, without overlap, and where the last one ends.
func (x *tx) newPieces(op *pb.Commit, base uint64, cs *chunkSet) (over []piece, end uint64, err error) {
	if len(op.Extents) > maxCommitExtents {
		return nil, 0, fserr.New(syscall.EINVAL, "%d extents in a commit, at most %d", len(op.Extents), maxCommitExtents)
	}
	list := make([]piece, 0, len(op.Extents))
	inline := 0
	for _, e := range op.Extents {
		if e.Length == 0 || e.Length > posix.MaxSize || e.Offset > posix.MaxSize || base+e.Offset+e.Length > posix.MaxSize {
			return nil, 0, fserr.New(syscall.EFBIG, "an extent of %d bytes at %d", e.Length, e.Offset)
		}
		p := piece{off: base + e.Offset, len: e.Length, chunk: chunk.ID(e.Chunk), coff: e.ChunkOffset}
		if p.chunk == 0 {
			inline += len(e.Data)
			p.coff, p.data = 0, slices.Clip(e.Data)
			if uint64(len(e.Data)) != e.Length {
				return nil, 0, fserr.New(syscall.EINVAL, "an inline extent of %d bytes with %d bytes of data", e.Length, len(e.Data))
			}
		} else if err := cs.mayRefer(&p); err != nil {
			return nil, 0, err
		} else if len(e.Data) > 0 {
			return nil, 0, fserr.New(syscall.EINVAL, "an extent of chunk %v with inline data", p.chunk)
		}
		end = max(end, p.end())
		list = append(list, p)
	}
	if inline > maxCommitInline {
		return nil, 0, fserr.New(syscall.E2BIG, "%d bytes of inline data in a commit, at most %d", inline, maxCommitInline)
	}
	return overlay(list), end, nil
}
