package namespace

import (
	"cmp"
	"slices"
	"sort"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
)

// errCrowded: the extents of a block would be cut into more pieces than it may have.
var errCrowded = fserr.New(syscall.ENOSPC, "more than %d extents in 64 MiB of a file", maxBlockExtents)

// remap says where bytes of chunks are in others: sorted by source, without overlap, once it is prepared.
type remap []remapRange

type remapRange struct {
	chunk    chunk.ID
	from, to uint64 // in it
	target   chunk.ID
	at       uint64 // in the target
}

// prepare checks the ranges and sorts them.
func (m remap) prepare() error {
	for _, r := range m {
		if r.from >= r.to || r.to > chunk.MaxLength || r.chunk == r.target {
			return fserr.New(syscall.EINVAL, "bytes %d to %d of chunk %v are to be found in %v", r.from, r.to, r.chunk, r.target)
		}
	}
	slices.SortFunc(m, func(a, b remapRange) int { return cmp.Or(cmp.Compare(a.chunk, b.chunk), cmp.Compare(a.from, b.from)) })
	for i := 1; i < len(m); i++ {
		if a, b := m[i-1], m[i]; a.chunk == b.chunk && b.from < a.to {
			return fserr.New(syscall.EINVAL, "chunk %v: two ranges to be found elsewhere overlap at %d", b.chunk, b.from)
		}
	}
	return nil
}

// first is the index of the first range of a chunk that ends behind an offset.
func (m remap) first(id chunk.ID, offset uint64) int {
	return sort.Search(len(m), func(i int) bool {
		r := &m[i]
		return r.chunk > id || r.chunk == id && r.to > offset
	})
}

// touches tells whether some of a piece lies in a range.
func (m remap) touches(p *piece) bool {
	i := m.first(p.chunk, p.coff)
	return i < len(m) && m[i].chunk == p.chunk && m[i].from < p.coff+p.len
}

// apply appends a piece to a list, with what of it lies in ranges referring to their targets, and returns how many bytes that
// concerns.
func (m remap) apply(list []piece, p piece) (_ []piece, moved uint64) {
	for i := m.first(p.chunk, p.coff); i < len(m); i++ {
		r := &m[i]
		if r.chunk != p.chunk || r.from >= p.coff+p.len {
			break
		}
		if r.from > p.coff {
			list = appendPiece(list, p.cut(p.off, p.off+r.from-p.coff))
			p = p.cut(p.off+r.from-p.coff, p.end())
		}
		n := min(r.to, p.coff+p.len) - p.coff
		list = appendPiece(list, piece{off: p.off, len: n, chunk: r.target, coff: r.at + p.coff - r.from})
		moved += n
		if n == p.len {
			return list, moved
		}
		p = p.cut(p.off+n, p.end())
	}
	return appendPiece(list, p), moved
}

// remapBlock has the extents of a block of a file refer to the targets where they lie in ranges. It returns how many bytes that
// concerns. The file's contents stay the same, and so does its inode. A file that is gone, or a block, has none. errCrowded: nothing
// was changed.
func (x *tx) remapBlock(m remap, num, number uint64, cs *chunkSet) (uint64, error) {
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
		parts, n := m.apply(nil, p)
		before, after = append(before, p), append(after, parts...)
		moved += n
		for i := range parts {
			all = appendPiece(all, parts[i])
		}
	}
	if moved == 0 {
		return 0, nil
	}
	if len(all) > maxBlockExtents {
		return 0, errCrowded
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
