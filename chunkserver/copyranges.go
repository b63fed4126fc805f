package chunkserver

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sort"

	"golang.org/x/sync/errgroup"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	// maxRanges and maxSources bound what one shard is made of.
	maxRanges  = 4096
	maxSources = 4096
	// rangeGap is how many bytes between two ranges are read with them rather than in a read of their own: a server reads
	// and checks whole blocks of this size anyway.
	rangeGap = chunk.ChecksumBlock
	// readsAtOnce is how many reads for one frame are under way.
	readsAtOnce = 2
)

// ranges is a chunk that consists of ranges of others, one after the other.
type ranges struct {
	list    []sourceRange
	buffers *frameBuffers
}

// sourceRange is the bytes [from, to) of a source, and where in the new chunk they end.
type sourceRange struct {
	src      *source
	from, to uint64
	end      uint64
}

func (s *Server) newRanges(o *pb.CopyOrder, buffers *frameBuffers) (*ranges, error) {
	if len(o.Ranges) > maxRanges || len(o.Sources) > maxSources {
		return nil, fmt.Errorf("%d ranges of %d chunks, at most %d of %d: %w", len(o.Ranges), len(o.Sources), maxRanges, maxSources, disk.ErrInvalid)
	}
	sources := make([]*source, len(o.Sources))
	for i, c := range o.Sources {
		var err error
		if sources[i], err = s.newSource(c, o.Servers, buffers); err != nil {
			return nil, err
		}
	}
	r := &ranges{list: make([]sourceRange, 0, len(o.Ranges)), buffers: buffers}
	for _, g := range o.Ranges {
		if uint64(g.Source) >= uint64(len(sources)) || g.From >= g.To || uint64(g.To) > sources[g.Source].length {
			return nil, fmt.Errorf("bytes %d to %d of source %d of %d: %w", g.From, g.To, g.Source, len(sources), disk.ErrInvalid)
		}
		r.list = append(r.list, sourceRange{sources[g.Source], uint64(g.From), uint64(g.To), r.length() + uint64(g.To-g.From)})
	}
	if n := r.length(); n > chunk.MaxLength {
		return nil, fmt.Errorf("ranges of %d bytes: %w", n, disk.ErrInvalid)
	}
	return r, nil
}

func (r *ranges) length() uint64 {
	if len(r.list) == 0 {
		return 0
	}
	return r.list[len(r.list)-1].end
}

// wantedRange is the bytes of a source that belong in a part of a frame.
type wantedRange struct {
	src *source
	off uint64
	dst []byte
}

func (w *wantedRange) end() uint64 { return w.off + uint64(len(w.dst)) }

// bytes implements content. What lies close together in a source is read at once, whatever its order here.
func (r *ranges) bytes(ctx context.Context, dst []byte, off uint64) error {
	var want []wantedRange
	for i := sort.Search(len(r.list), func(i int) bool { return r.list[i].end > off }); i < len(r.list) && len(dst) > 0; i++ {
		g := &r.list[i]
		n := min(g.end-off, uint64(len(dst)))
		want = append(want, wantedRange{g.src, g.to - (g.end - off), dst[:n]})
		dst, off = dst[n:], off+n
	}
	clear(dst)
	slices.SortFunc(want, func(a, b wantedRange) int {
		return cmp.Or(cmp.Compare(a.src.id, b.src.id), cmp.Compare(a.off, b.off))
	})
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readsAtOnce)
	for len(want) > 0 {
		n := near(want)
		batch := want[:n]
		want = want[n:]
		g.Go(func() error { return r.read(ctx, batch) })
	}
	return g.Wait()
}

// near is how many of the first of these are read at once.
func near(want []wantedRange) int {
	n, end := 1, want[0].end()
	for n < len(want) && want[n].src == want[0].src && want[n].off <= end+rangeGap && max(end, want[n].end())-want[0].off <= chunk.MaxFrame {
		end = max(end, want[n].end())
		n++
	}
	return n
}

// read reads ranges of one source that lie near each other.
func (r *ranges) read(ctx context.Context, batch []wantedRange) error {
	first := batch[0]
	if len(batch) == 1 {
		return first.src.bytes(ctx, first.dst, first.off)
	}
	end := first.end()
	for i := range batch {
		end = max(end, batch[i].end())
	}
	buf := r.buffers.take(int(end - first.off))
	defer r.buffers.Put(buf)
	if err := first.src.bytes(ctx, *buf, first.off); err != nil {
		return err
	}
	for _, w := range batch {
		copy(w.dst, (*buf)[w.off-first.off:])
	}
	return nil
}
