package data

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// location is a range of a chunk, and who can be asked for it.
type location struct {
	chunk   chunk.ID
	layout  chunk.Layout
	off     uint64
	n       int
	length  uint64           // what the servers are known to hold of the chunk
	servers []chunk.ServerID // of a code by the number of the shard, 0 for none
	tries   int              // how often it was tried before
	lost    error            // why the bytes, which were never published, are gone
	open    bool             // a client writes the chunk
}

// piece is a part of a read that comes from a chunk.
type piece struct {
	location
	dst []byte // nil: for the cache only
}

// errOutdated: the extents are of an older version of the file than what is known of it.
var errOutdated = errors.New("extents of an older version")

// view is what one read takes the file to be, so that the size it goes by is that of the bytes it shows: where the extents
// of one version have nothing, the next may have data, and that is not a hole.
type view struct {
	version   uint64 // the data version known when it began
	appends   bool   // there are uncommitted appends
	local     uint64 // where the uncommitted bytes end
	committed uint64 // where the committed bytes end, if the read goes so far
}

func (v *view) size() uint64 {
	if v.appends { // they have their place behind what was known to be committed
		return v.local
	}
	return max(v.local, v.committed)
}

// errAwaited: every copy is damaged or missing, but whoever wrote the bytes may have them still, and write them again.
var errAwaited = errors.New("its writer may write it again")

// lostPatience is how long a read waits for that.
const lostPatience = 30 * time.Second

// ReadAt reads len(p) bytes from offset off, fewer with io.EOF at the end of the file. While no server that holds the bytes
// can be reached it waits; so it does for a while if all have lost them and a client may write them again. EIO: every copy is
// damaged or missing.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fserr.New(syscall.EINVAL, "a read at offset %d", off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	f.readAhead(uint64(off), len(p))
	fresh := false
	misses := map[string]int{} // how often no copy was good in one place, and nobody known who could write it again
	var missed time.Time       // since when no copy is good
	for attempt := 0; ; attempt++ {
		n, err := f.readOnce(ctx, p, uint64(off), attempt, fresh)
		switch {
		case err == nil:
			f.s.metrics.read.Add(float64(n))
			if n < len(p) {
				return n, io.EOF
			}
			return n, nil
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case errors.Is(err, errAllBad):
			if missed.IsZero() {
				missed = time.Now()
			}
			awaited := errors.Is(err, errAwaited)
			// The extents may have been those of a chunk that was moved or given up since: cached ones, and fresh ones by the time they
			// were used. They are asked for anew as long as they say something else each time.
			n := 0
			if bad := (*badCopies)(nil); errors.As(err, &bad) && !awaited {
				misses[bad.where]++
				n = misses[bad.where]
			}
			if n > 2 || time.Since(missed) > lostPatience {
				return 0, fserr.New(syscall.EIO, "read inode %d at %d: %v", f.inode, off, err)
			}
			if awaited || n > 1 {
				if err := sleep(ctx, backoff(attempt)); err != nil {
					return 0, err
				}
			}
		case errors.Is(err, errOutdated):
		case errors.Is(err, errUnreachable):
			missed = time.Time{}
			if attempt > 0 {
				if err := sleep(ctx, backoff(attempt-1)); err != nil {
					return 0, err
				}
			}
		default:
			return 0, err
		}
		fresh = true
	}
}

// readOnce reads from what is known of the file now.
func (f *File) readOnce(ctx context.Context, p []byte, off uint64, attempt int, fresh bool) (int, error) {
	// First what is uncommitted, then what is committed: bytes that are committed in between are seen twice, never missed.
	pieces, missing, v := f.uncommitted(p, off)
	for _, m := range missing {
		var err error
		if pieces, err = f.committed(ctx, p, off, m, pieces, &v, fresh); err != nil {
			return 0, err
		}
	}
	for i := range pieces {
		pieces[i].tries = attempt
	}
	if err := f.s.reader.readAll(ctx, pieces); err != nil {
		return 0, err
	}
	size := v.size()
	if off >= size {
		return 0, nil
	}
	return int(min(uint64(len(p)), size-off)), nil
}

// uncommitted copies what is in memory of the written range, and returns where else there are uncommitted bytes, and what
// is not uncommitted.
func (f *File) uncommitted(p []byte, off uint64) ([]piece, []span, view) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := f.view()
	missing := []span{{off, off + uint64(len(p))}}
	var pieces []piece
	for i := len(f.gens) - 1; i >= 0 && len(missing) > 0; i-- {
		g := f.gens[i]
		if g.empty() {
			continue
		}
		var base uint64 // where in the file the generation's offsets count from
		if g.append {
			base = f.sizeBefore(g)
		}
		missing, pieces = g.read(p, off, base, missing, pieces)
		if g.append { // what lies under an append ends where it begins
			missing = f.beforeAppend(p, off, base, missing)
		}
	}
	return pieces, missing, v
}

func (f *File) view() view {
	v := view{version: f.attr.DataVersion, committed: posix.MaxSize}
	for _, g := range f.gens {
		v.appends = v.appends || g.append && !g.empty()
		v.local = max(v.local, g.end)
	}
	if v.appends {
		v.local = f.size()
	}
	return v
}

// beforeAppend zeroes what lies beyond the place of an append and is not in it, and takes it off the missing ranges.
func (f *File) beforeAppend(p []byte, off, base uint64, missing []span) []span {
	out := missing[:0]
	for _, m := range missing {
		if m.hi > base {
			lo := max(m.lo, base)
			clear(p[lo-off : m.hi-off])
			m.hi = lo
		}
		if m.lo < m.hi {
			out = append(out, m)
		}
	}
	return out
}

// read copies what the generation has in memory of the missing ranges of p, which holds the file from off.
func (g *generation) read(p []byte, off, base uint64, missing []span, pieces []piece) ([]span, []piece) {
	if base > 0 {
		// The generation counts from base: so must the ranges.
		local := make([]span, 0, len(missing))
		var below []span
		for _, m := range missing {
			if m.lo < base {
				below = append(below, span{m.lo, min(m.hi, base)})
				m.lo = base
			}
			if m.lo < m.hi {
				local = append(local, span{m.lo - base, m.hi - base})
			}
		}
		missing, pieces = g.readLocal(p, off, base, local, pieces)
		for i := range missing {
			missing[i].lo += base
			missing[i].hi += base
		}
		return append(below, missing...), pieces
	}
	return g.readLocal(p, off, 0, missing, pieces)
}

// readLocal is read with ranges that count from base.
func (g *generation) readLocal(p []byte, off, base uint64, missing []span, pieces []piece) ([]span, []piece) {
	at := func(s span) []byte { return p[s.lo+base-off : s.hi+base-off] }
	b := &g.builder
	missing = cover(missing, len(b.segs), func(i int) span { return span{b.segs[i].off, b.segs[i].end()} }, func(i int, part span) {
		s := b.segs[i]
		copy(at(part), (*b.buf)[s.pos+int(part.lo-s.off):])
	})
	if len(missing) == 0 || len(g.over) == 0 {
		return missing, pieces
	}
	w := g.frames[0].file.s.writer
	return cover(missing, len(g.over), func(i int) span { return span{g.over[i].off, g.over[i].end()} }, func(i int, part span) {
		from := g.over[i]
		pos := from.pos + int(part.lo-from.off)
		if b := w.inMemory(from.fr); b != nil {
			copy(at(part), b.ReadOnlyData()[pos:])
			b.Free()
			return
		}
		pieces = append(pieces, piece{location: w.locate(from.fr, pos, part.len()), dst: at(part)})
	}), pieces
}

// inMemory returns a frame's bytes with a reference of the caller's own, nil if they are on servers only.
func (w *writer) inMemory(fr *frame) mem.Buffer {
	w.mu.Lock()
	defer w.mu.Unlock()
	if fr.buf == nil {
		return nil
	}
	return fr.payload()
}

// locate says where a part of a frame is that is not in memory.
func (w *writer) locate(fr *frame, pos, n int) location {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := fr.chunk
	if fr.err != nil || c == nil { // without an error: it is moving at this very moment
		return location{n: n, lost: fr.err}
	}
	return c.locate(fr, pos, n)
}

// committed adds what metadata has for the range m of the file, which p holds from off.
func (f *File) committed(ctx context.Context, p []byte, off uint64, m span, pieces []piece, v *view, fresh bool) ([]piece, error) {
	for m.lo < m.hi {
		r, err := f.s.meta.Extents(ctx, f.inode, m.lo, uint64(m.len()), fresh)
		if err != nil {
			return nil, fmt.Errorf("extents of inode %d: %w", f.inode, err)
		}
		f.Observe(r.Attr)
		if !fresh && f.s.reader.moved.due(r.Chunks) {
			off, n := m.lo, uint64(m.len())
			f.s.tasks.run(func() { _, _ = f.s.meta.Extents(f.s.ctx, f.inode, off, n, true) }) // for reads to come
		}
		if r.GetAttr().GetDataVersion() < v.version && !fresh {
			return nil, errOutdated
		}
		end := min(m.hi, r.End)
		if r.Offset > m.lo || end <= m.lo {
			if m.lo >= r.GetAttr().GetSize() { // beyond the end of the file
				end = m.hi
			} else {
				return nil, fserr.New(syscall.EIO, "extents of inode %d: asked from %d, got [%d, %d)", f.inode, m.lo, r.Offset, r.End)
			}
		}
		if size := r.GetAttr().GetSize(); end > size {
			v.committed = min(v.committed, size)
		}
		if pieces, err = resolve(r, span{m.lo, end}, p, off, pieces); err != nil {
			return nil, fmt.Errorf("inode %d: %w", f.inode, err)
		}
		m.lo = end
	}
	return pieces, nil
}

// resolve turns extents into pieces; inline data and holes are copied at once. p holds the file from off; with p nil only
// chunks matter.
func resolve(r *pb.ExtentsReply, m span, p []byte, off uint64, pieces []piece) ([]piece, error) {
	var bad error
	dst := func(s span) []byte {
		if p == nil {
			return nil
		}
		return p[s.lo-off : s.hi-off]
	}
	at := func(i int) span { return span{r.Extents[i].Offset, r.Extents[i].Offset + r.Extents[i].Length} }
	holes := cover([]span{m}, len(r.Extents), at, func(i int, part span) {
		e := r.Extents[i]
		skip := part.lo - e.Offset
		if e.Chunk == 0 {
			if uint64(len(e.Data)) != e.Length {
				bad = fserr.New(syscall.EIO, "an inline extent of %d bytes has %d", e.Length, len(e.Data))
				return
			}
			copy(dst(part), e.Data[skip:])
			return
		}
		loc, err := locateIn(r.Chunks, e, skip, part.len())
		if err != nil {
			bad = err
			return
		}
		pieces = append(pieces, piece{location: loc, dst: dst(part)})
	})
	for _, h := range holes {
		clear(dst(h))
	}
	return pieces, bad
}

func locateIn(chunks []*pb.ChunkInfo, e *pb.Extent, skip uint64, n int) (location, error) {
	for _, c := range chunks {
		if c.Id != e.Chunk {
			continue
		}
		loc := location{chunk: chunk.ID(c.Id), layout: chunk.LayoutOf(c.Layout), off: e.ChunkOffset + skip, n: n, length: c.Length, open: c.Open}
		if e.ChunkOffset > c.Length || skip+uint64(n) > c.Length-e.ChunkOffset {
			return loc, fserr.New(syscall.EIO, "chunk %v ends at %d, an extent names %d bytes at %d", loc.chunk, c.Length, e.Length, e.ChunkOffset)
		}
		coded := loc.layout.Coded()
		if coded && (loc.layout.Check(true) != nil || len(c.Servers) > loc.layout.Width() || c.Length%uint64(loc.layout.Row()) != 0) {
			return loc, fserr.New(syscall.EIO, "chunk %v of %d bytes on %d servers cannot be %v in cells of %d", loc.chunk, c.Length, len(c.Servers), loc.layout, loc.layout.Cell)
		}
		loc.servers = make([]chunk.ServerID, 0, max(len(c.Servers), loc.layout.Width()))
		for _, s := range c.Servers {
			if s != 0 || coded {
				loc.servers = append(loc.servers, chunk.ServerID(s))
			}
		}
		if coded {
			loc.servers = loc.servers[:loc.layout.Width()]
		}
		return loc, nil
	}
	return location{}, fserr.New(syscall.EIO, "the metaserver names chunk %v without saying where it is", chunk.ID(e.Chunk))
}

// readAll reads pieces, several at a time.
func (r *reader) readAll(ctx context.Context, pieces []piece) error {
	if len(pieces) == 0 {
		return nil
	}
	if len(pieces) == 1 {
		return r.read(ctx, pieces[0])
	}
	return parallel(ctx, pieces, r.read)
}

// parallel calls fn for each item, a few at a time, and returns the first error, which ends the others.
func parallel[T any](ctx context.Context, items []T, fn func(context.Context, T) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var first error
	turns := make(chan struct{}, maxParallel)
	for _, item := range items {
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			if err := fn(ctx, item); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = err
					cancel()
				}
			}
		})
	}
	wg.Wait()
	return first
}
