package data

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// shardSpan is a range of a shard.
type shardSpan struct{ lo, hi uint64 }

func (s shardSpan) empty() bool              { return s.lo >= s.hi }
func (s shardSpan) covers(o shardSpan) bool  { return s.lo <= o.lo && o.hi <= s.hi }
func (s shardSpan) len() int                 { return int(s.hi - s.lo) }
func (s shardSpan) touches(o shardSpan) bool { return s.lo <= o.hi && o.lo <= s.hi }

// hull is the smallest range that covers both.
func (s shardSpan) hull(o shardSpan) shardSpan {
	switch {
	case s.empty():
		return o
	case o.empty():
		return s
	}
	return shardSpan{min(s.lo, o.lo), max(s.hi, o.hi)}
}

// codedFetch reads a range of a coded chunk: what is on good servers from them, the rest by computing it from other shards.
//
// A shard whose server fails is out for this fetch. One that is late, or whose server was not fit from the start, is replaced
// by others as long as there are any; whatever comes first counts.
type codedFetch struct {
	r       *reader
	ctx     context.Context // of the requests
	loc     location
	timeout time.Duration // after which a shard is late
	shards  []shardFetch
	order   []int // shards whose servers can be asked, the best first
	results chan shardOutcome
	asked   int
	missing int // shards that are nowhere
	bad     int // shards that are not as they should be
	errs    []error
}

type shardFetch struct {
	server candidate
	need   shardSpan // what the range has on it
	good   bool      // to be asked for what is needed rather than replaced
	failed bool
	late   bool
	flying []shardRequest
	got    []shardPart
}

type shardRequest struct {
	at    shardSpan
	since time.Time
}

type shardPart struct {
	at      shardSpan
	payload mem.BufferSlice
}

type shardOutcome struct {
	outcome
	shard int
	at    shardSpan
}

// fetchCoded is fetch for coded chunks.
func (r *reader) fetchCoded(ctx context.Context, loc location) (mem.BufferSlice, error) {
	try, cancel := context.WithCancel(ctx)
	f := &codedFetch{r: r, ctx: try, loc: loc, timeout: r.s.cfg.ReadTimeout << min(loc.tries, 4)}
	f.prepare(ctx)
	answered := 0
	defer func() {
		cancel()
		f.free()
		if late := f.asked - answered; late > 0 {
			r.s.tasks.run(func() {
				for range late {
					o := <-f.results
					o.payload.Free()
				}
			})
		}
	}()
	f.plan()
	soft := time.NewTimer(f.timeout)
	defer soft.Stop()
	for !f.complete() {
		if answered == f.asked {
			return nil, f.failure()
		}
		select {
		case o := <-f.results:
			answered++
			if o.err != nil && ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if !f.take(o) {
				f.plan()
			}
		case now := <-soft.C:
			f.expire(now)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		soft.Reset(f.next(time.Now()))
	}
	return f.assemble()
}

// prepare finds out what is needed of each shard and who can be asked for it.
func (f *codedFetch) prepare(ctx context.Context) {
	l := f.loc.layout
	f.shards, f.order = make([]shardFetch, l.Width()), make([]int, 0, l.Width())
	f.results = make(chan shardOutcome, 2*l.Width())
	l.Runs(f.loc.off, f.loc.off+uint64(f.loc.n), func(run chunk.Run) {
		s := &f.shards[run.Shard]
		s.need = s.need.hull(shardSpan{run.Offset, run.Offset + uint64(run.Len)})
	})
	for i := range f.shards {
		s := &f.shards[i]
		if f.loc.servers[i] == 0 {
			f.missing++
			s.failed = true
			continue
		}
		if s.server = f.r.candidate(ctx, f.loc, i); s.server.address == "" {
			s.failed = true
			continue
		}
		s.good = s.server.rank < rankUnfit
		if !s.need.empty() {
			s.server.rank -= rankLoad / 2 // what it is asked for anyway need not be computed
		}
		f.order = append(f.order, i)
	}
	slices.SortFunc(f.order, func(a, b int) int { return cmp.Compare(f.shards[a].server.rank, f.shards[b].server.rank) })
}

// plan asks for what is needed and not under way. What nobody good has is asked of Data others. It tells whether it asked.
func (f *codedFetch) plan() bool {
	before := f.asked
	data := f.shards[:f.loc.layout.Data]
	var window shardSpan // of the shards that are to be replaced
	for i := range data {
		if s := &data[i]; !s.direct() && !s.need.empty() && !f.has(i, s.need) {
			window = window.hull(s.need)
		}
	}
	if !window.empty() {
		f.askOthers(window)
	}
	for i := range data {
		if s := &data[i]; s.direct() && !s.need.empty() && !s.flies(s.need) && !f.has(i, s.need) {
			f.ask(i, s.need)
		}
	}
	return f.asked > before
}

// direct tells whether the shard is read rather than replaced.
func (s *shardFetch) direct() bool { return s.good && !s.failed && !s.late }

// askOthers sees to it that a window of Data shards comes, if there are so many.
func (f *codedFetch) askOthers(window shardSpan) {
	coming := 0
	for i := range f.shards {
		if s := &f.shards[i]; s.holds(window) || !s.late && s.flies(window) {
			coming++
		}
	}
	for _, late := range []bool{false, true} { // of a late one a part may come that was not asked for yet
		for _, i := range f.order {
			s := &f.shards[i]
			if coming >= f.loc.layout.Data {
				return
			}
			if s.failed || s.late != late || s.holds(window) || s.flies(window) {
				continue
			}
			at := window
			if s.direct() && s.need.touches(window) && !s.flies(s.need) && !s.holds(s.need) {
				at = window.hull(s.need)
			}
			f.ask(i, at)
			coming++
		}
	}
}

// has tells whether a range of a data shard is here or can be computed.
func (f *codedFetch) has(shard int, at shardSpan) bool {
	if f.shards[shard].holds(at) {
		return true
	}
	n := 0
	for i := range f.shards {
		if f.shards[i].holds(at) {
			n++
		}
	}
	return n >= f.loc.layout.Data
}

func (f *codedFetch) complete() bool {
	for i := range f.shards[:f.loc.layout.Data] {
		if at := f.shards[i].need; !at.empty() && !f.has(i, at) {
			return false
		}
	}
	return true
}

func (s *shardFetch) holds(at shardSpan) bool { return s.part(at) != nil }

// part returns what arrived of the shard and has all of a range.
func (s *shardFetch) part(at shardSpan) *shardPart {
	for i := range s.got {
		if s.got[i].at.covers(at) {
			return &s.got[i]
		}
	}
	return nil
}

// flies tells whether a range of the shard is under way.
func (s *shardFetch) flies(at shardSpan) bool {
	return slices.ContainsFunc(s.flying, func(q shardRequest) bool { return q.at.covers(at) })
}

func (f *codedFetch) ask(shard int, at shardSpan) {
	s := &f.shards[shard]
	f.asked++
	s.flying = append(s.flying, shardRequest{at, time.Now()})
	from := location{chunk: f.loc.chunk.Stored(f.loc.layout, shard), off: at.lo, n: at.len()}
	results, server := f.results, s.server
	if !f.r.s.tasks.run(func() {
		results <- shardOutcome{f.r.ask(f.ctx, server, from, readPatience*f.timeout), shard, at}
	}) {
		f.asked--
		s.failed, s.flying = true, nil
		f.errs = append(f.errs, context.Canceled)
	}
}

// take takes an answer, and tells whether it brought something.
func (f *codedFetch) take(o shardOutcome) bool {
	s := &f.shards[o.shard]
	s.flying = slices.DeleteFunc(s.flying, func(q shardRequest) bool { return q.at == o.at })
	if o.err == nil {
		f.r.s.metrics.fetched.Add(float64(o.at.len()))
		s.got = append(s.got, shardPart{o.at, o.payload})
		s.late = false
		return true
	}
	f.errs = append(f.errs, fmt.Errorf("shard %d on server %d: %w", o.shard, o.server, o.err))
	if s.failed {
		return false
	}
	s.failed = true
	if f.r.blame(f.loc.chunk.Stored(f.loc.layout, o.shard), o.outcome) {
		f.bad++
	}
	f.r.s.metrics.retries.Inc()
	return false
}

// expire has shards that did not answer in time replaced.
func (f *codedFetch) expire(now time.Time) {
	var late []chunk.ServerID
	for i := range f.shards {
		s := &f.shards[i]
		if !s.late && slices.ContainsFunc(s.flying, func(q shardRequest) bool { return now.Sub(q.since) >= f.timeout }) {
			s.late = true
			late = append(late, s.server.id)
		}
	}
	if len(late) == 0 || !f.plan() { // without another to be asked it may as well be this machine that is slow
		return
	}
	f.r.s.metrics.hedged.Inc()
	for _, id := range late {
		f.r.s.health.slow(id)
	}
}

// next returns how long it is until a shard is late.
func (f *codedFetch) next(now time.Time) time.Duration {
	next := f.timeout
	for i := range f.shards {
		if s := &f.shards[i]; !s.late {
			for _, q := range s.flying {
				next = min(next, f.timeout-now.Sub(q.since))
			}
		}
	}
	return max(next, time.Millisecond)
}

// failure says why the range cannot be read: for good only if too few shards can be.
func (f *codedFetch) failure() error {
	l, reason := f.loc.layout, errUnreachable
	if l.Width()-f.missing-f.bad < l.Data {
		reason = errAllBad
	}
	if f.missing > 0 {
		f.errs = append(f.errs, fmt.Errorf("%d of its %d shards are nowhere", f.missing, l.Width()))
	}
	return fmt.Errorf("chunk %v at %d: %w: %w", f.loc.chunk, f.loc.off, reason, errors.Join(f.errs...))
}

func (f *codedFetch) free() {
	for i := range f.shards {
		for _, p := range f.shards[i].got {
			p.payload.Free()
		}
	}
}

// assemble puts the range together out of what came.
func (f *codedFetch) assemble() (mem.BufferSlice, error) {
	l := f.loc.layout
	for i := range f.shards[:l.Data] {
		if at := f.shards[i].need; !at.empty() && !f.shards[i].holds(at) {
			if err := f.rebuild(i, at); err != nil {
				return nil, err
			}
			f.r.s.metrics.rebuilt.Inc()
		}
	}
	if lo, hi := f.loc.off, f.loc.off+uint64(f.loc.n)-1; l.Cell >= copyBelow || lo/uint64(l.Cell) == hi/uint64(l.Cell) {
		return f.join(), nil
	}
	return f.interleave(), nil
}

// rebuild computes a range of a shard from the same range of Data others.
func (f *codedFetch) rebuild(shard int, at shardSpan) error {
	l, pool := f.loc.layout, &f.r.s.buffers.pools
	data, wanted := make([][]byte, l.Width()), make([]bool, l.Width())
	have := 0
	for i := range f.shards {
		p := f.shards[i].part(at)
		if p == nil || have == l.Data {
			continue
		}
		have++
		part := slicePart(p.payload, int(at.lo-p.at.lo), at.len())
		flat := part.MaterializeToBuffer(pool)
		part.Free()
		defer flat.Free()
		data[i] = flat.ReadOnlyData()
	}
	b, mine := pool.buffer(at.len())
	data[shard], wanted[shard] = mine[:0], true
	if err := l.Rebuild(data, wanted); err != nil {
		b.Free()
		return fmt.Errorf("chunk %v: compute shard %d: %w", f.loc.chunk, shard, err)
	}
	f.shards[shard].got = append(f.shards[shard].got, shardPart{at, mem.BufferSlice{b}})
	return nil
}

// join lists the cells in the order of the chunk, without copying them.
func (f *codedFetch) join() (out mem.BufferSlice) {
	f.loc.layout.Runs(f.loc.off, f.loc.off+uint64(f.loc.n), func(run chunk.Run) {
		s := &f.shards[run.Shard]
		p := s.part(s.need)
		out = append(out, slicePart(p.payload, int(run.Offset-p.at.lo), run.Len)...)
	})
	return out
}

// interleave copies the cells together, into buffers that end where the blocks of the cache do.
func (f *codedFetch) interleave() (out mem.BufferSlice) {
	from := make([]cursor, f.loc.layout.Data)
	for i := range from {
		if s := &f.shards[i]; !s.need.empty() {
			p := s.part(s.need)
			from[i] = cursor{rest: p.payload, skip: int(s.need.lo - p.at.lo)}
		}
	}
	end := f.loc.off + uint64(f.loc.n)
	var to []byte
	f.loc.layout.Runs(f.loc.off, end, func(run chunk.Run) {
		for at, left := run.Chunk, run.Len; left > 0; {
			if len(to) == 0 {
				var b mem.Buffer
				b, to = f.r.s.buffers.pools.buffer(int(min(end-at, cacheBlock-at%cacheBlock)))
				out = append(out, b)
			}
			n := min(left, len(to))
			from[run.Shard].copy(to[:n])
			at, left, to = at+uint64(n), left-n, to[n:]
		}
	})
	return out
}

// cursor copies a payload piece by piece.
type cursor struct {
	rest mem.BufferSlice
	skip int // bytes of the first buffer
}

func (c *cursor) copy(dst []byte) {
	for len(dst) > 0 && len(c.rest) > 0 {
		d := c.rest[0].ReadOnlyData()
		if c.skip >= len(d) {
			c.skip -= len(d)
			c.rest = c.rest[1:]
			continue
		}
		n := copy(dst, d[c.skip:])
		c.skip += n
		dst = dst[n:]
	}
}
