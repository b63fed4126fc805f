package chunkserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// copyAhead is how many frames of a copy are fetched while one is written.
	copyAhead = 3
	// decodeMemory bounds what is fetched to compute one frame of a shard, in bytes, as far as cells allow.
	decodeMemory = 2 << 20
	// stoppedPoll is how often, and stoppedPolls how many times, a copy looks whether the chunk's writer, which was stopped, has
	// gone.
	stoppedPoll  = 20 * time.Millisecond
	stoppedPolls = 250
	// narrowCell is the cell below which a data shard is cut out of all of the chunk instead of being read cell by cell.
	narrowCell = chunk.ChecksumBlock
)

// content is the bytes of the chunk that a shard is cut out of.
type content interface {
	// bytes fills dst with those from off on. What follows the end is zeros, as in the last row of a code.
	bytes(ctx context.Context, dst []byte, off uint64) error
}

// shardPlan is how a shard is put together from what the source has.
type shardPlan struct {
	s      *Server
	src    *source // nil: the chunk is ranges of others
	chunk  content
	size   uint64 // of the chunk's bytes
	bufs   *frameBuffers
	id     chunk.ID // stored
	layout chunk.Layout
	shard  int
	length uint64
	frame  int  // bytes fetched and written at a time, at most chunk.MaxFrame
	urgent bool // one more loss, and there is nothing left to make it of
}

// fetched is a frame of the shard.
type fetched struct {
	sums    []uint32
	payload mem.BufferSlice
	err     error
}

// plan checks an order and decides how to go about it.
func (s *Server) plan(o *pb.CopyOrder) (*shardPlan, error) {
	p := &shardPlan{
		s: s, bufs: new(frameBuffers), id: chunk.ID(o.Stored), layout: chunk.LayoutOf(o.Layout), shard: int(o.Shard), length: o.Length, frame: chunk.MaxFrame,
	}
	if err := p.from(s, o); err != nil {
		return nil, err
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, disk.ErrInvalid)
	}
	switch l := p.layout; {
	case p.plain():
	case p.sameCode():
		p.frame = min(p.frame, decodeMemory/l.Data/chunk.ChecksumBlock*chunk.ChecksumBlock)
	case l.Coded():
		p.frame = max(1, min(p.frame, decodeMemory/l.Data)/l.Cell) * l.Cell
	}
	return p, nil
}

// from says what the shard is made of.
func (p *shardPlan) from(s *Server, o *pb.CopyOrder) error {
	if len(o.Ranges) > 0 {
		c, err := s.newRanges(o, p.bufs)
		if err != nil {
			return err
		}
		p.chunk, p.size = c, c.length()
		return nil
	}
	src, err := s.newSource(o.Source, o.Servers, p.bufs)
	if err != nil {
		return err
	}
	p.src, p.chunk, p.size = src, src, src.length
	p.urgent = urgent(o)
	return nil
}

func (p *shardPlan) check() error {
	if err := p.layout.Check(true); err != nil {
		return fmt.Errorf("layout: %w", err)
	}
	whole := -1
	if p.layout.Coded() {
		whole = p.shard
	}
	switch {
	case p.shard >= p.layout.Width():
		return fmt.Errorf("shard %d of %v", p.shard, p.layout)
	case p.id == 0 || p.id.Shard() != whole:
		return fmt.Errorf("shard %d of %v cannot be kept as %v", p.shard, p.layout, p.id)
	case p.length == 0 || p.length > chunk.MaxLength:
		return fmt.Errorf("a shard of %d bytes", p.length)
	case p.src == nil && p.length != p.layout.ShardLength(uint64(p.layout.Padded(int(p.size)))), // or it would not go with the others
		p.plain() && p.length > p.size, p.src != nil && !p.layout.Coded() && p.length > p.src.padded(),
		p.sameCode() && p.length > p.src.shardLength():
		return fmt.Errorf("a shard of %d bytes out of a chunk of %d", p.length, p.size)
	case p.layout.Coded() && p.length%uint64(p.layout.Cell) != 0:
		return fmt.Errorf("a shard of %d bytes in cells of %d", p.length, p.layout.Cell)
	}
	return nil
}

// plain says that whole copies are made of whole copies.
func (p *shardPlan) plain() bool {
	return p.src != nil && !p.layout.Coded() && !p.src.layout.Coded()
}

// sameCode says that the shard belongs to the chunk that the source has shards of.
func (p *shardPlan) sameCode() bool {
	if p.src == nil {
		return false
	}
	a, b := p.layout, p.src.layout
	return a.Coded() && a.Data == b.Data && a.Parity == b.Parity && a.Cell == b.Cell
}

// fetch returns a frame of the shard.
func (p *shardPlan) fetch(ctx context.Context, off uint64, n int) fetched {
	f := p.fetchWhole(ctx, off, n)
	if f.err == nil || ctx.Err() != nil || !p.plain() && !p.sameCode() {
		return f
	}
	return p.patch(ctx, off, n, f.err)
}

// patch puts a frame together block by block where no server has all of it: each may be damaged in another place, and so may be
// what is to be replaced here.
func (p *shardPlan) patch(ctx context.Context, off uint64, n int, cause error) fetched {
	out := p.bufs.take(n)
	for rest := *out; len(rest) > 0; {
		block := rest[:min(len(rest), chunk.ChecksumBlock)]
		rest = rest[len(block):]
		sums, payload, err := p.own(ctx, off, len(block))
		if err != nil {
			f := p.fetchWhole(ctx, off, len(block))
			sums, payload, err = f.sums, f.payload, f.err
		}
		if err == nil {
			payload.CopyTo(block)
			payload.Free()
			if !slices.Equal(sums, chunk.Checksums(nil, block)) {
				err = errors.New("wrong checksum of a block") // memory that fails
			}
		}
		if err != nil {
			p.bufs.Put(out)
			return fetched{err: fmt.Errorf("%w; the bytes at %d alone: %w", cause, off, err)}
		}
		off += uint64(len(block))
	}
	return p.made(out)
}

// own reads from what is here of the shard.
func (p *shardPlan) own(ctx context.Context, off uint64, n int) ([]uint32, mem.BufferSlice, error) {
	d := p.s.store.find(p.id)
	if d == nil {
		return nil, nil, fmt.Errorf("chunk %v: %w", p.id, disk.ErrNotFound)
	}
	return d.Read(ctx, p.s.local, p.id, off, n)
}

// fetchWhole returns a range of the shard, from one server as far as it is not computed.
func (p *shardPlan) fetchWhole(ctx context.Context, off uint64, n int) fetched {
	switch {
	case p.plain():
		return p.src.copyOf(ctx, p.src.holders(), off, n)
	case p.sameCode():
		if p.src.sound(p.shard) {
			if f := p.src.copyOf(ctx, []int{p.shard}, off, n); f.err == nil || ctx.Err() != nil {
				return f
			}
		}
		return p.rebuilt(ctx, off, n)
	}
	return p.converted(ctx, off, n)
}

// rebuilt computes a frame from the same range of other shards.
func (p *shardPlan) rebuilt(ctx context.Context, off uint64, n int) fetched {
	w, err := p.src.windows(ctx, off, off+uint64(n), []int{p.shard})
	if err != nil {
		return fetched{err: err}
	}
	defer w.free()
	out := p.bufs.take(n)
	copy(*out, w.shards[p.shard])
	return p.made(out)
}

// made is a frame that was computed here.
func (p *shardPlan) made(b *[]byte) fetched {
	return fetched{sums: chunk.Checksums(nil, *b), payload: mem.BufferSlice{mem.NewBuffer(b, p.bufs)}}
}

// converted computes a frame of a shard of another layout than the source has.
func (p *shardPlan) converted(ctx context.Context, off uint64, n int) fetched {
	out := p.bufs.take(n)
	if err := p.convert(ctx, *out, off); err != nil {
		p.bufs.Put(out)
		return fetched{err: err}
	}
	return p.made(out)
}

// convert fills dst with the shard's bytes from off on: whole cells, if it has any.
func (p *shardPlan) convert(ctx context.Context, dst []byte, off uint64) error {
	l := p.layout
	if !l.Coded() {
		return p.chunk.bytes(ctx, dst, off)
	}
	row := off / uint64(l.Cell) * uint64(l.Row()) // where in the chunk the first row begins
	if p.shard < l.Data && l.Cell >= narrowCell {
		for i := 0; i < len(dst); i += l.Cell {
			if err := p.chunk.bytes(ctx, dst[i:i+l.Cell], row+uint64(p.shard*l.Cell)); err != nil {
				return err
			}
			row += uint64(l.Row())
		}
		return nil
	}
	n := len(dst)
	buf := p.bufs.take(2 * n * l.Data)
	defer p.bufs.Put(buf)
	all, cut := (*buf)[:n*l.Data], (*buf)[n*l.Data:]
	if err := p.chunk.bytes(ctx, all, row); err != nil {
		return err
	}
	shards, wanted := make([][]byte, l.Width()), make([]bool, l.Width())
	for i := range l.Data {
		shards[i] = cut[i*n : (i+1)*n]
	}
	l.Scatter(shards[:l.Data], all)
	if p.shard >= l.Data {
		wanted[p.shard] = true
		if err := l.Rebuild(shards, wanted); err != nil {
			return fmt.Errorf("code shard %d: %w", p.shard, err)
		}
	}
	copy(dst, shards[p.shard])
	return nil
}

// makeCopy makes a shard as ordered and keeps it durably. It returns the bytes written, 0 where it was here already. at says
// which disk it waits for.
func (s *Server) makeCopy(ctx context.Context, o *pb.CopyOrder, at *atomic.Pointer[disk.Disk]) (uint64, error) {
	p, err := s.plan(o)
	if err != nil {
		return 0, fmt.Errorf("order of chunk %v: %w", chunk.ID(o.Stored), err)
	}
	if here, err := s.present(ctx, p.id, p.length, at); here || err != nil {
		return 0, err
	}
	c, err := s.store.copy(p.id, p.length, at)
	if err != nil {
		return 0, err
	}
	err = s.pull(ctx, p, c)
	if err == nil {
		err = c.Commit()
	}
	if rest := c.Discard(); rest != nil {
		s.log.Warn("an unfinished copy could not be removed; that is done at the next start", "chunk", p.id, "err", rest)
	}
	if err != nil {
		return 0, err
	}
	if err := s.store.supersede(p.id, c.Disk()); err != nil {
		s.log.Warn("a damaged chunk that was made anew on another disk could not be deleted", "chunk", p.id, "err", err)
	}
	return p.length, nil
}

// present says whether the shard is here already, durable, and nothing is wrong with it: an order whose answer was lost is
// repeated.
func (s *Server) present(ctx context.Context, id chunk.ID, length uint64, at *atomic.Pointer[disk.Disk]) (bool, error) {
	d := s.store.find(id)
	if d == nil {
		return false, nil
	}
	at.Store(d)
	h, ok := d.Held(id)
	// The writer of a damaged chunk was stopped, and is about to go.
	for n := 0; h.Writing && h.Bad && n < stoppedPolls && wait(ctx, stoppedPoll); n++ {
		h, ok = d.Held(id)
	}
	switch {
	case ok && h.Writing:
		return false, fmt.Errorf("copy of chunk %v: %w", id, disk.ErrWriting)
	case !ok || h.Bad || h.Length < length:
		return false, nil
	case s.store.hangs(d):
		return false, fmt.Errorf("chunk %v may be here, but its disk hangs: %w", id, disk.ErrFailed)
	}
	// It counts as made when a loss of power leaves it as it is.
	err := d.Persist(id)
	if err == nil {
		err = d.Verify(ctx, id, nil)
	}
	switch {
	case errors.Is(err, disk.ErrCorrupt) && s.store.good(id):
		return s.present(ctx, id, length, at) // on another disk
	case errors.Is(err, disk.ErrCorrupt) || errors.Is(err, disk.ErrNotFound):
		return false, nil
	}
	return err == nil, err
}

// pull fetches the shard frame by frame and writes it. Some frames are fetched ahead, so that network and disk overlap.
func (s *Server) pull(ctx context.Context, p *shardPlan, c *disk.Copy) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	frames := make(chan chan fetched, copyAhead)
	go func() {
		defer close(frames)
		for off := uint64(0); off < p.length; off += uint64(p.frame) {
			n := int(min(uint64(p.frame), p.length-off))
			f := make(chan fetched, 1)
			frames <- f
			leave, err := s.pass(ctx, p, n)
			if err != nil {
				f <- fetched{err: err}
				return
			}
			go func() {
				f <- p.fetch(ctx, off, n)
				leave()
			}()
		}
	}()
	var failed error
	for f := range frames { // to the end, so that nothing is left behind
		got := <-f
		if failed == nil {
			failed = got.err
		}
		if failed == nil {
			failed = c.Append(c.Length(), got.sums, got.payload)
		}
		if failed != nil {
			cancel()
		} else {
			s.metrics.copiedBytes.Add(float64(got.payload.Len()))
		}
		got.payload.Free()
	}
	return failed
}

// pass waits until n bytes of a shard may be fetched. leave is to be called once they are there.
func (s *Server) pass(ctx context.Context, p *shardPlan, n int) (leave func(), err error) {
	if err := s.copyRate.wait(ctx, n); err != nil {
		return nil, err
	}
	if p.urgent {
		return func() {}, nil
	}
	began := time.Now()
	leave, err = s.copyPass.enter(ctx)
	s.metrics.copyWaits.Add(time.Since(began).Seconds())
	return leave, err
}
