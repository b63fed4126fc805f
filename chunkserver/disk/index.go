package disk

import (
	"sort"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// frame is one append: where its bytes are in the chunk and in the file.
type frame struct {
	offset uint32 // in the chunk, bytes
	length uint32 // bytes, never 0
	pos    uint32 // of the payload in the file, bytes
	sum    uint32 // its first checksum in index.sums
}

func (f *frame) end() uint64 { return uint64(f.offset) + uint64(f.length) }

// index lists the frames of a chunk in order of their offset. It only ever grows: a copy of the struct is a snapshot.
type index struct {
	frames []frame
	sums   []uint32
	length uint64 // of the chunk, bytes
}

// sumsOf returns the checksums of a frame, one for each 64 KiB of it.
func (ix *index) sumsOf(f *frame) []uint32 {
	return ix.sums[f.sum : int(f.sum)+chunk.Blocks(int(f.length))]
}

// add appends a frame.
func (ix *index) add(offset uint64, length int, pos int64, sums []uint32) {
	ix.frames = append(ix.frames, frame{offset: uint32(offset), length: uint32(length), pos: uint32(pos), sum: uint32(len(ix.sums))})
	ix.sums = append(ix.sums, sums...)
	ix.length = max(ix.length, offset+uint64(length))
}

// find returns the number of the first frame that ends beyond offset.
func (ix *index) find(offset uint64) int {
	return sort.Search(len(ix.frames), func(i int) bool { return ix.frames[i].end() > offset })
}

// endOf is where in the file the first n frames end.
func (ix *index) endOf(n int) int64 {
	if n == 0 {
		return 0
	}
	f := &ix.frames[n-1]
	return int64(f.pos) + int64(f.length)
}

// memory is what the index takes, bytes.
func (ix *index) memory() int64 { return 16*int64(cap(ix.frames)) + 4*int64(cap(ix.sums)) }
