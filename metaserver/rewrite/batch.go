package rewrite

import (
	"cmp"
	"context"
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// span is bytes [from, to) of a chunk.
type span struct {
	chunk    chunk.ID
	from, to uint64
}

func (s span) len() uint64 { return s.to - s.from }

// batch is what becomes one new chunk.
type batch struct {
	want    chunk.Layout // without cells
	spans   []span       // in the order of the new chunk
	blocks  []namespace.FileBlock
	extents []int             // in each of the blocks, roughly
	bytes   uint64            // of all spans
	wide    uint64            // of long ones
	files   map[uint64]uint64 // by inode: bytes of it

	taken  map[chunk.ID][]span // sorted: what of each source is in spans
	closed bool                // nothing more fits
}

// layout returns the layout with cells: wide ones where files are in long pieces, and where that does not fill the chunk with
// padding.
func (b *batch) layout(l chunk.Layout) chunk.Layout {
	if !l.Coded() {
		return l
	}
	l.Cell = l.WideCell()
	if padding := uint64(l.Padded(int(b.bytes))) - b.bytes; 2*b.wide < b.bytes || padding > b.bytes/16 {
		l.Cell = chunk.PackedCell
	}
	return l
}

// capacity is how many bytes fit in a chunk whatever the cells.
func capacity(l chunk.Layout) uint64 {
	n := uint64(chunk.MaxLength)
	if l.Coded() {
		for _, cell := range []int{l.WideCell(), chunk.PackedCell} {
			l.Cell = cell
			n = min(n, chunk.MaxLength/uint64(l.Row())*uint64(l.Row()))
		}
	}
	return n
}

// inodes lists the files concerned.
func (b *batch) inodes() []uint64 {
	out := make([]uint64, 0, len(b.files))
	for inode := range b.files {
		out = append(out, inode)
	}
	slices.Sort(out)
	return out
}

// add takes an extent in as far as there is room, and returns what is left of it.
func (b *batch) add(at namespace.FileBlock, extents int, e namespace.Extent) (rest namespace.Extent) {
	n := min(e.Length, capacity(b.want)-b.bytes)
	missing := b.missing(span{e.Chunk, e.ChunkOffset, e.ChunkOffset + n})
	if len(b.spans) > 0 && len(b.spans)+len(missing) > namespace.MaxRewriteRanges {
		b.closed = true
		return e
	}
	for _, s := range missing {
		b.append(s)
	}
	if last := len(b.blocks) - 1; last < 0 || b.blocks[last] != at {
		b.blocks, b.extents = append(b.blocks, at), append(b.extents, extents)
	}
	b.files[at.Inode] += n
	if n >= wideRange {
		b.wide += n
	}
	return namespace.Extent{Offset: e.Offset + n, Length: e.Length - n, Chunk: e.Chunk, ChunkOffset: e.ChunkOffset + n}
}

func (b *batch) append(s span) {
	b.bytes += s.len()
	if n := len(b.spans); n > 0 && b.spans[n-1].chunk == s.chunk && b.spans[n-1].to == s.from {
		b.spans[n-1].to = s.to
	} else {
		b.spans = append(b.spans, s)
	}
	list := b.taken[s.chunk]
	i, _ := slices.BinarySearchFunc(list, s.from, func(o span, from uint64) int { return cmp.Compare(o.from, from) })
	b.taken[s.chunk] = slices.Insert(list, i, s)
}

// missing returns what of a span is not taken yet: files may share bytes.
func (b *batch) missing(s span) []span {
	var out []span
	list := b.taken[s.chunk]
	i, _ := slices.BinarySearchFunc(list, s.from, func(o span, from uint64) int { return cmp.Compare(o.to, from+1) })
	for ; i < len(list) && list[i].from < s.to; i++ {
		if list[i].from > s.from {
			out = append(out, span{s.chunk, s.from, list[i].from})
		}
		s.from = max(s.from, list[i].to)
	}
	if s.from < s.to {
		out = append(out, s)
	}
	return out
}

// full tells whether no more should be added.
func (b *batch) full() bool {
	return b.closed || b.bytes >= capacity(b.want) || len(b.spans) >= namespace.MaxRewriteRanges || len(b.blocks) >= namespace.MaxRewriteBlocks
}

// finish makes the command that remaps some of the blocks.
func (b *batch) finish(id chunk.ID, length uint64) *pb.FinishRewrite {
	f := &pb.FinishRewrite{Chunk: uint64(id), Length: length, Ranges: make([]*pb.RewriteRange, len(b.spans))}
	for i, s := range b.spans {
		f.Ranges[i] = &pb.RewriteRange{Chunk: uint64(s.chunk), From: uint32(s.from), To: uint32(s.to)}
	}
	return f
}

// builder makes batches of extents, which it is given file by file.
type builder struct {
	emit  func(context.Context, *batch) error
	open  map[chunk.Layout]*batch
	bytes uint64 // of all batches
}

func newBuilder(emit func(context.Context, *batch) error) *builder {
	return &builder{emit: emit, open: map[chunk.Layout]*batch{}}
}

// add takes extents of a block, which has so many altogether, to be stored in a layout.
func (b *builder) add(ctx context.Context, want chunk.Layout, at namespace.FileBlock, extents int, list []namespace.Extent) error {
	for _, e := range list {
		for e.Length > 0 {
			open := b.open[want]
			if open == nil {
				open = &batch{want: want, files: map[uint64]uint64{}, taken: map[chunk.ID][]span{}}
				b.open[want] = open
			}
			before := e.Length
			e = open.add(at, extents, e)
			b.bytes += before - e.Length
			if open.full() {
				delete(b.open, want)
				if err := b.emit(ctx, open); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// flush emits what is left.
func (b *builder) flush(ctx context.Context) error {
	for want, open := range b.open {
		delete(b.open, want)
		if len(open.spans) == 0 {
			continue
		}
		if err := b.emit(ctx, open); err != nil {
			return err
		}
	}
	return nil
}
