package data

import (
	"context"

	"github.com/shoalfs/shoalfs/internal/posix"
)

const (
	aheadMin     = 1 << 20  // bytes read ahead of a reader that has just shown itself to be sequential
	aheadMax     = 8 << 20  // and of one that has been for long
	aheadStreams = 4        // sequential readers of a file that are told apart
	aheadTotal   = 64 << 20 // bytes being read ahead in a Store
	// A long read that begins so near to where the last one ended is sequential: kernels send several at once.
	aheadSlack = 1 << 20
	aheadLong  = 64 << 10
)

// readahead finds the sequential readers of a file. File.mu guards it.
type readahead struct {
	streams [aheadStreams]stream
	clock   uint64
}

type stream struct {
	next   uint64 // where the reader is expected
	done   uint64 // read ahead up to here
	window uint64 // 0: not known to be sequential yet
	used   uint64 // when it was last used
}

// advance takes note of a read and returns what to read ahead, nothing if lo == hi.
func (r *readahead) advance(off, n, size uint64) span {
	r.clock++
	s := r.find(off, n)
	if s == nil {
		s = &r.streams[0]
		for i := range r.streams {
			if r.streams[i].used < s.used {
				s = &r.streams[i]
			}
		}
		*s = stream{next: off + n, used: r.clock}
		if off > 0 || n < aheadLong {
			return span{}
		}
	}
	s.used = r.clock
	s.next = max(s.next, off+n)
	if s.window == 0 {
		s.window = aheadMin
	}
	s.done = max(s.done, s.next)
	if s.done-s.next > s.window/2 || s.done >= size {
		return span{}
	}
	out := span{s.done, min((s.next+s.window+fetchUnit-1)/fetchUnit*fetchUnit, size)}
	if out.hi <= out.lo {
		return span{}
	}
	s.done = out.hi
	s.window = min(2*s.window, aheadMax)
	return out
}

func (r *readahead) find(off, n uint64) *stream {
	for i := range r.streams {
		s := &r.streams[i]
		switch {
		case s.used == 0:
		case off == s.next:
			return s
		case n >= aheadLong && s.window > 0 && off+aheadSlack >= s.next && off <= s.next+aheadSlack:
			return s
		}
	}
	return nil
}

// readAhead has the bytes fetched that the reader of this range will want next.
func (f *File) readAhead(off uint64, n int) {
	r := f.s.reader
	if f.s.cfg.CacheBytes < 0 {
		return
	}
	f.mu.Lock()
	at := f.ahead.advance(off, uint64(n), min(f.attr.Size, posix.MaxSize))
	f.mu.Unlock()
	if at.lo == at.hi {
		return
	}
	limit := min(aheadTotal, f.s.cfg.CacheBytes/4)
	size := int64(at.len())
	if r.ahead.Add(size) > limit || !f.s.tasks.run(func() {
		defer r.ahead.Add(-size)
		f.fetchAhead(f.s.ctx, at)
	}) {
		r.ahead.Add(-size)
	}
}

// fetchAhead brings a range into the cache. Errors are left to whoever reads it.
func (f *File) fetchAhead(ctx context.Context, at span) {
	var pieces []piece
	for at.lo < at.hi {
		e, err := f.s.meta.Extents(ctx, f.inode, at.lo, uint64(at.len()), false)
		if err != nil || e.Offset > at.lo || e.End <= at.lo {
			return
		}
		end := min(at.hi, e.End)
		if pieces, err = resolve(e, span{at.lo, end}, nil, 0, pieces); err != nil {
			return
		}
		at.lo = end
	}
	for _, p := range pieces {
		f.s.metrics.readahead.Add(float64(p.n))
	}
	_ = f.s.reader.readAll(ctx, pieces)
}
