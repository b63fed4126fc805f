package disk

import (
	"context"
	"fmt"
	"io"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// piece is the part of a read that one frame answers. All are offsets in the frame, bytes.
type piece struct {
	frame    *frame
	from, to uint32 // whole checksum blocks
	lo, hi   uint32 // what was asked for
}

// spanMax bounds what is read at once over the records of several small frames, in bytes.
const spanMax = 256 << 10

// Read returns length bytes from offset on, and the checksums of each 64 KiB of them counted from offset. The payload is in
// buffers of m, and the caller frees it. Read fails with ErrNotFound, with ErrRange where the chunk holds less, with
// ErrCorrupt where what is stored is not what was written: then the chunk is bad from now on.
func (d *Disk) Read(ctx context.Context, m *Memory, id chunk.ID, offset uint64, length int) ([]uint32, mem.BufferSlice, error) {
	if length < 1 || length > chunk.MaxRead {
		return nil, nil, fmt.Errorf("chunk %v: a read of %d bytes: %w", id, length, ErrInvalid)
	}
	h, err := d.acquire(id)
	if err != nil {
		return nil, nil, err
	}
	defer h.release()
	if offset > h.ix.length || uint64(length) > h.ix.length-offset {
		return nil, nil, fmt.Errorf("chunk %v: %d bytes at %d of %d: %w", id, length, offset, h.ix.length, ErrRange)
	}
	pieces, err := h.ix.pieces(offset, uint64(length))
	if err != nil {
		return nil, nil, d.damaged(id, h.of, err)
	}
	spans, sizes := group(pieces)
	bufs, err := m.acquire(ctx, sizes)
	if err != nil {
		return nil, nil, err
	}
	payload := make(mem.BufferSlice, 0, len(bufs))
	rest := pieces
	for i := range spans {
		n, err := h.readSpan(rest[:spans[i].pieces], &spans[i], *bufs[i])
		if err != nil {
			payload.Free()
			for _, b := range bufs[i:] {
				m.Put(b)
			}
			return nil, nil, d.damaged(id, h.of, err)
		}
		payload = append(payload, trim(m.buffer(bufs[i]), n))
		rest = rest[spans[i].pieces:]
	}
	return h.ix.replySums(pieces, payload), payload, nil
}

// trim cuts a buffer to a part of it.
func trim(b mem.Buffer, p part) mem.Buffer {
	if p.lo == 0 && p.hi == b.Len() {
		return b
	}
	defer b.Free()
	return b.Slice(p.lo, p.hi)
}

// pieces cuts a range at the borders of frames.
func (ix *index) pieces(offset, length uint64) ([]piece, error) {
	ps := make([]piece, 0, 2+length/chunk.MaxFrame)
	end := offset + length
	for i := ix.find(offset); offset < end; i++ {
		if i == len(ix.frames) || uint64(ix.frames[i].offset) > offset {
			return nil, fmt.Errorf("no record of the bytes at %d: %w", offset, ErrCorrupt)
		}
		f := &ix.frames[i]
		p := piece{frame: f, lo: uint32(offset) - f.offset, hi: uint32(min(end, f.end())) - f.offset}
		p.from = p.lo / chunk.ChecksumBlock * chunk.ChecksumBlock
		p.to = min((p.hi+chunk.ChecksumBlock-1)/chunk.ChecksumBlock*chunk.ChecksumBlock, f.length)
		ps = append(ps, p)
		offset = f.end()
	}
	return ps, nil
}

// span is a range of the file that is read at once.
type span struct {
	pieces int
	size   int // bytes of the file
	asked  int // bytes of these that are wanted
}

// small says that the span is read into scratch memory first, because most of it is not wanted: the reply may be kept for
// long by who gets it.
func (s *span) small() bool { return 2*s.asked <= s.size }

// group decides which pieces are read together: small ones that are neighbours in the file. It also returns the sizes of the
// buffers that the spans need.
func group(ps []piece) (spans []span, sizes []int) {
	var start int64
	for i := range ps {
		from, to := int64(ps[i].frame.pos+ps[i].from), int64(ps[i].frame.pos+ps[i].to)
		asked := int(ps[i].hi - ps[i].lo)
		if k := len(spans) - 1; k >= 0 && to-start <= spanMax && from >= start {
			spans[k].pieces++
			spans[k].size = int(to - start)
			spans[k].asked += asked
			continue
		}
		spans, start = append(spans, span{1, int(to - from), asked}), from
	}
	for i := range spans {
		if spans[i].small() {
			sizes = append(sizes, spans[i].asked)
		} else {
			sizes = append(sizes, spans[i].size)
		}
	}
	return spans, sizes
}

// part is a range of a buffer.
type part struct{ lo, hi int }

// scratch holds buffers for spans of which little is wanted.
var scratch = NewMemory(0)

// readSpan reads pieces, checks them, and puts the bytes asked for into buf.
func (h *handle) readSpan(ps []piece, s *span, buf []byte) (part, error) {
	in := buf
	if s.small() {
		b, err := scratch.acquire(context.Background(), []int{s.size})
		if err != nil {
			return part{}, err
		}
		defer scratch.Put(b[0])
		in = *b[0]
	}
	start := ps[0].frame.pos + ps[0].from
	if _, err := h.file.ReadAt(in, int64(start)); err != nil {
		if err == io.EOF {
			return part{}, fmt.Errorf("the file ends before the bytes at %d: %w", ps[0].frame.offset+ps[0].lo, ErrCorrupt)
		}
		return part{}, err
	}
	filled := 0
	for i := range ps {
		p := &ps[i]
		at := p.frame.pos + p.from - start
		if err := h.ix.verify(p, in[at:at+p.to-p.from]); err != nil {
			return part{}, err
		}
		lo, hi := at+p.lo-p.from, at+p.hi-p.from
		if len(ps) == 1 && !s.small() {
			return part{int(lo), int(hi)}, nil
		}
		filled += copy(buf[filled:], in[lo:hi])
	}
	return part{0, filled}, nil
}

// verify checks the blocks of a piece.
func (ix *index) verify(p *piece, b []byte) error {
	sums := ix.sumsOf(p.frame)[p.from/chunk.ChecksumBlock:]
	for i := 0; len(b) > 0; i++ {
		n := min(len(b), chunk.ChecksumBlock)
		if chunk.Checksum(b[:n]) != sums[i] {
			return fmt.Errorf("wrong checksum of the block at %d: %w", uint64(p.frame.offset)+uint64(p.from)+uint64(i)*chunk.ChecksumBlock, ErrCorrupt)
		}
		b = b[n:]
	}
	return nil
}

// replySums returns the checksums of each block of the payload. Where the blocks of the reply are those of the frames,
// these were just proved and are not computed again.
func (ix *index) replySums(ps []piece, payload mem.BufferSlice) []uint32 {
	sums := make([]uint32, 0, chunk.Blocks(payload.Len()))
	for i := range ps {
		p := &ps[i]
		last := i == len(ps)-1
		if p.lo%chunk.ChecksumBlock != 0 || !last && p.hi%chunk.ChecksumBlock != 0 || last && p.hi != p.to {
			var s chunk.Summer
			for _, b := range payload {
				_, _ = s.Write(b.ReadOnlyData()) // never fails
			}
			return s.Sums()
		}
		first := p.lo / chunk.ChecksumBlock
		sums = append(sums, ix.sumsOf(p.frame)[first:int(first)+chunk.Blocks(int(p.hi-p.lo))]...)
	}
	return sums
}
