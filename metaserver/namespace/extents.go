package namespace

import (
	"encoding/binary"
	"slices"
	"sort"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// piece is an extent in memory: a range of a file and where its bytes are.
type piece struct {
	off, len uint64 // in the file, bytes; len > 0
	chunk    chunk.ID
	coff     uint64 // in the chunk
	data     []byte // inline bytes, when chunk is 0
}

func (p *piece) end() uint64 { return p.off + p.len }

// cut returns the part of a piece between two offsets of the file that lie within it.
func (p *piece) cut(from, to uint64) piece {
	c := piece{off: from, len: to - from, chunk: p.chunk}
	if p.chunk == 0 {
		c.data = p.data[from-p.off : to-p.off : to-p.off]
	} else {
		c.coff = p.coff + (from - p.off)
	}
	return c
}

func (p *piece) extent() *pb.Extent {
	e := &pb.Extent{Offset: p.off, Length: p.len, Chunk: uint64(p.chunk), ChunkOffset: p.coff}
	if p.chunk == 0 {
		e.Data = append([]byte(nil), p.data...)
	}
	return e
}

// appendPiece adds a piece to the end of a sorted list, as part of the last one where it carries that on.
func appendPiece(list []piece, p piece) []piece {
	if n := len(list); n > 0 {
		last := &list[n-1]
		switch {
		case last.end() != p.off || last.chunk != p.chunk:
		case p.chunk == 0:
			last.data = append(last.data, p.data...)
			last.len += p.len
			return list
		case last.coff+last.len == p.coff:
			last.len += p.len
			return list
		}
	}
	p.data = slices.Clip(p.data) // what is spare behind it may belong to another list by now
	return append(list, p)
}

// merge lays a list of pieces over another. Both are sorted and without overlap, as is the result.
func merge(under, over []piece) []piece {
	out := make([]piece, 0, len(under)+len(over)+1)
	var u piece // the first of those under that are left, perhaps cut: the caller's list is not changed
	left := true
	next := func() {
		if left = len(under) > 0; left {
			u, under = under[0], under[1:]
		}
	}
	next()
	for i := range over {
		o := &over[i]
		for left && u.end() <= o.off {
			out = appendPiece(out, u)
			next()
		}
		if left && u.off < o.off {
			out = appendPiece(out, u.cut(u.off, o.off))
		}
		for left && u.end() <= o.end() {
			next()
		}
		if left && u.off < o.end() {
			u = u.cut(o.end(), u.end())
		}
		out = appendPiece(out, *o)
	}
	for left {
		out = appendPiece(out, u)
		next()
	}
	return out
}

// overlay sorts pieces of which later ones lie over earlier ones into a list without overlap.
func overlay(list []piece) []piece {
	sorted := true
	for i := 1; i < len(list) && sorted; i++ {
		sorted = list[i-1].end() <= list[i].off
	}
	if sorted {
		return merge(nil, list) // joins neighbours
	}
	half := len(list) / 2
	return merge(overlay(list[:half]), overlay(list[half:]))
}

// The extents of a block of a file are stored as the version and extentSize bytes each: offset in the block, length,
// chunk, offset in the chunk.
const extentSize = 4 + 4 + 8 + 4

// maxBlockExtents bounds the extents of one block, and so the size of a value (2.5 MiB). Writes of 512 bytes each, none
// beside the one before, do not reach it.
const maxBlockExtents = 128 << 10

func extentKey(inode, block uint64) []byte { return key16(inode, block) }

// block is a stored block's extents, read where they are needed only.
type block struct {
	base uint64 // the file offset where the block starts
	v    []byte // the extents, without the version
}

func parseBlock(number uint64, v []byte) (block, error) {
	switch {
	case v == nil:
		return block{base: number * posix.ExtentBlock}, nil
	case len(v) <= 1 || v[0] != formatVersion || (len(v)-1)%extentSize != 0 || number > posix.MaxSize/posix.ExtentBlock:
		return block{}, errDamaged
	}
	return block{number * posix.ExtentBlock, v[1:]}, nil
}

func (b block) count() int { return len(b.v) / extentSize }

func (b block) at(i int) piece {
	e := b.v[i*extentSize:]
	return piece{
		off: b.base + uint64(binary.BigEndian.Uint32(e)), len: uint64(binary.BigEndian.Uint32(e[4:])),
		chunk: chunk.ID(binary.BigEndian.Uint64(e[8:])), coff: uint64(binary.BigEndian.Uint32(e[16:])),
	}
}

// pieces reads the extents from i up to j, and checks that they are what an encoder writes. In a damaged block a search
// can find anything.
func (b block) pieces(i, j int) ([]piece, error) {
	if i > j {
		return nil, errDamaged
	}
	out := make([]piece, 0, j-i)
	last := b.base
	for ; i < j; i++ {
		p := b.at(i)
		if p.off < last || p.len == 0 || p.end() > b.base+posix.ExtentBlock || p.chunk == 0 || p.coff+p.len > chunk.MaxLength {
			return nil, errDamaged
		}
		last = p.end()
		out = append(out, p)
	}
	return out, nil
}

// after is the index of the first extent that ends behind offset.
func (b block) after(offset uint64) int {
	return sort.Search(b.count(), func(i int) bool { p := b.at(i); return p.end() > offset })
}

// from is the index of the first extent that starts at offset or behind it.
func (b block) from(offset uint64) int {
	return sort.Search(b.count(), func(i int) bool { return b.at(i).off >= offset })
}

func (b block) appendPieces(v []byte, list []piece) []byte {
	for i := range list {
		p := &list[i]
		v = binary.BigEndian.AppendUint32(v, uint32(p.off-b.base))
		v = binary.BigEndian.AppendUint32(v, uint32(p.len))
		v = binary.BigEndian.AppendUint64(v, uint64(p.chunk))
		v = binary.BigEndian.AppendUint32(v, uint32(p.coff))
	}
	return v
}

// putBlock stores a block's extents, encoded in v with the version.
func (x *tx) putBlock(in *inode, number uint64, v []byte) error {
	switch n := (len(v) - 1) / extentSize; {
	case n == 0:
		x.Delete(bExtent, extentKey(in.num, number))
	case n > maxBlockExtents:
		return fserr.New(syscall.ENOSPC, "inode %d: more than %d extents in the 64 MiB from %d", in.num, maxBlockExtents, number*posix.ExtentBlock)
	default:
		x.Put(bExtent, extentKey(in.num, number), v)
	}
	return nil
}

// writePieces lays pieces (sorted, without overlap) over a file's extents. Chunks lose and gain live bytes in cs.
func (x *tx) writePieces(in *inode, over []piece, cs *chunkSet) error {
	inline, err := x.mergeInline(in, over)
	if err != nil {
		return err
	}
	hadChunks := in.allocated > in.inlineBytes()
	x.setInline(in, inline)
	for len(over) > 0 {
		number := over[0].off / posix.ExtentBlock
		limit := (number + 1) * posix.ExtentBlock
		var here []piece
		onlyInline := true
		for len(over) > 0 && over[0].off < limit {
			p := over[0]
			onlyInline = onlyInline && p.chunk == 0
			if p.end() > limit {
				here = append(here, p.cut(p.off, limit))
				// over is this call's own.
				over[0] = p.cut(limit, p.end())
				break
			}
			here = append(here, p)
			over = over[1:]
		}
		if onlyInline && !hadChunks {
			continue
		}
		if err := x.mergeBlock(in, number, here, cs); err != nil {
			return err
		}
	}
	return nil
}

// mergeInline returns a file's inline extents once pieces lie over them: E2BIG when they are too many bytes.
func (x *tx) mergeInline(in *inode, over []piece) ([]piece, error) {
	inline := slices.DeleteFunc(merge(in.inline, over), func(p piece) bool { return p.chunk != 0 })
	var n uint64
	for i := range inline {
		n += inline[i].len
	}
	if n > posix.MaxInline {
		return nil, fserr.New(syscall.E2BIG, "%d bytes of inline data, at most %d", n, posix.MaxInline)
	}
	return inline, nil
}

// setInline replaces an inode's inline extents and accounts for them.
func (x *tx) setInline(in *inode, inline []piece) {
	before := in.inlineBytes()
	in.inline = inline
	after := in.inlineBytes()
	in.allocated += after - before
	x.c.inline += after - before
}

// mergeBlock lays pieces over the chunk extents of one block; inline ones among them only make room. Extents that have
// nothing to do with them are copied as they are stored.
func (x *tx) mergeBlock(in *inode, number uint64, over []piece, cs *chunkSet) error {
	key := extentKey(in.num, number)
	stored := x.Get(bExtent, key)
	b, err := parseBlock(number, stored)
	if err != nil {
		return damaged(bExtent, key)
	}
	v := append(make([]byte, 0, 1+len(b.v)+2*len(over)*extentSize), formatVersion)
	done := 0 // extents of b that are in v, or replaced there
	for len(over) > 0 {
		i, j, n := b.around(over)
		under, err := b.pieces(max(i, done), j)
		if err != nil {
			return damaged(bExtent, key)
		}
		merged := slices.DeleteFunc(merge(under, over[:n]), func(p piece) bool { return p.chunk == 0 })
		if err := x.account(in, under, merged, cs); err != nil {
			return err
		}
		v = append(v, b.v[done*extentSize:max(i, done)*extentSize]...)
		v = b.appendPieces(v, merged)
		done, over = j, over[n:]
	}
	v = append(v, b.v[done*extentSize:]...)
	if stored == nil && len(v) == 1 {
		return nil
	}
	return x.putBlock(in, number, v)
}

// around returns how many of the first pieces lie so close to each other that they are merged at once, and the extents i up
// to j that they are merged with: those that they overlap, and one more on either side, which they may carry on.
func (b block) around(over []piece) (i, j, n int) {
	i = max(b.after(over[0].off)-1, 0)
	for n < len(over) && (n == 0 || b.after(over[n].off)-1 < j) {
		j = max(j, min(b.from(over[n].end())+1, b.count()))
		n++
	}
	return i, j, n
}

// account moves a file's bytes from the extents that it had to those that it has instead.
func (x *tx) account(in *inode, before, after []piece, cs *chunkSet) error {
	var lost, gained uint64
	for i := range before {
		lost += before[i].len
		if err := cs.addLive(before[i].chunk, -int64(before[i].len)); err != nil {
			return err
		}
	}
	for i := range after {
		gained += after[i].len
		if err := cs.addLive(after[i].chunk, int64(after[i].len)); err != nil {
			return err
		}
	}
	if lost > in.allocated {
		return damaged(bInode, key8(in.num))
	}
	in.allocated += gained - lost
	return nil
}

// cutExtents drops all extents of a file from size on. The caller records the inode.
func (x *tx) cutExtents(in *inode, size uint64) error {
	hadChunks := in.allocated > in.inlineBytes()
	var kept []piece
	for i := range in.inline {
		if p := in.inline[i]; p.off < size {
			kept = append(kept, p.cut(p.off, min(p.end(), size)))
		}
	}
	x.setInline(in, kept)
	if !hadChunks {
		return nil
	}
	var numbers []uint64
	x.Scan(bExtent, extentKey(in.num, size/posix.ExtentBlock), func(k, _ []byte) bool {
		if len(k) != 16 || !hasPrefix8(k, in.num) {
			return false
		}
		numbers = append(numbers, binary.BigEndian.Uint64(k[8:]))
		return true
	})
	cs := newChunkSet(x)
	for _, number := range numbers {
		if err := x.cutBlock(in, number, size, cs); err != nil {
			return err
		}
	}
	return cs.flush()
}

// cutBlock drops the extents of one block from size on.
func (x *tx) cutBlock(in *inode, number, size uint64, cs *chunkSet) error {
	key := extentKey(in.num, number)
	b, err := parseBlock(number, x.Get(bExtent, key))
	if err != nil {
		return damaged(bExtent, key)
	}
	i := b.after(size)
	under, err := b.pieces(i, b.count())
	if err != nil {
		return damaged(bExtent, key)
	}
	if len(under) == 0 {
		return nil
	}
	var kept []piece
	if p := &under[0]; p.off < size {
		if p.end() <= size {
			return damaged(bExtent, key)
		}
		kept = append(kept, p.cut(p.off, size))
	}
	if err := x.account(in, under, kept, cs); err != nil {
		return err
	}
	v := append(make([]byte, 0, 1+(i+1)*extentSize), formatVersion)
	v = append(v, b.v[:i*extentSize]...)
	return x.putBlock(in, number, b.appendPieces(v, kept))
}
