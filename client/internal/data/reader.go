package data

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	fetchUnit   = 1 << 20 // longer fetches are made in parts of so many bytes, side by side
	fetchAlign  = 4 << 10 // fetches begin and end at multiples of this
	maxParallel = 8       // fetches of one read
	// readPatience is how many times the read timeout a replica has before it counts as unreachable.
	readPatience = 10
)

var (
	// errAllBad: every replica answered that it has not the bytes, or sent others.
	errAllBad = errors.New("no copy is good")
	// errUnreachable: no replica sent the bytes, and not all said that they have not got them.
	errUnreachable = errors.New("no server that holds the bytes answers")
)

// badCopies says where no copy is good.
type badCopies struct {
	where string
	error
}

func (b *badCopies) Unwrap() error { return b.error }

// reader reads chunks: from its cache, or from the best replica.
type reader struct {
	s     *Store
	cache *cache
	ahead atomic.Int64 // bytes being read ahead
	moved moved
}

func newReader(s *Store) *reader { return &reader{s: s, cache: newCache(s.cfg.CacheBytes)} }

func (r *reader) close() { r.cache.clear() }

// read brings a piece: into its dst, or, without one, only into the cache.
func (r *reader) read(ctx context.Context, p piece) error {
	if p.lost != nil {
		return p.lost
	}
	if p.chunk == 0 || len(p.servers) == 0 {
		return errUnreachable
	}
	todo := []span{{p.off, p.off + uint64(p.n)}}
	for round := 0; len(todo) > 0; round++ {
		fetch, flights, waiting := r.lookup(p, todo, round > 0)
		if err := r.fetchSpans(ctx, p, fetch); errors.Is(err, errAllBad) {
			if p.open || r.s.writer.keeps(p.chunk) {
				err = fmt.Errorf("%w, though %w", err, errAwaited)
			}
			return &badCopies{fmt.Sprint(p.chunk, p.servers), err}
		} else if err != nil {
			return err
		}
		if p.dst == nil {
			return nil
		}
		for _, f := range flights {
			select {
			case <-f.done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		todo = waiting // it is in the cache now, unless the fetch failed or the cache is small
	}
	return nil
}

// lookup copies what is cached of the ranges. The rest is to be fetched, or is being fetched by others, unless alone.
func (r *reader) lookup(p piece, todo []span, alone bool) (fetch []span, flights []*flight, waiting []span) {
	for _, t := range todo {
		eachBlock(t.lo, t.hi, func(index uint32, lo, hi int) {
			base := uint64(index) * cacheBlock
			at := span{base + uint64(lo), base + uint64(hi)}
			var dst []byte
			if p.dst != nil {
				dst = p.dst[at.lo-p.off : at.hi-p.off]
			}
			hit, f, touched := r.cache.lookup(block{p.chunk, index}, lo, hi, dst)
			if hit {
				r.s.metrics.hits.Inc()
				return
			}
			if f != nil && !alone {
				if len(flights) == 0 || flights[len(flights)-1] != f {
					flights = append(flights, f)
				}
				waiting = append(waiting, at)
				return
			}
			r.s.metrics.misses.Inc()
			want := span{at.lo &^ (fetchAlign - 1), min(max((at.hi+fetchAlign-1)&^(fetchAlign-1), at.hi), p.length)}
			switch {
			case p.tries > 0: // what failed may be what was not asked for
				want = at
			case touched && at.len() < cacheBlock/2: // the second read here: the block is worth having whole
				want = span{base, min(base+cacheBlock, p.length)}
			}
			want.hi = max(want.hi, at.hi)
			if k := len(fetch); k > 0 && fetch[k-1].hi >= want.lo {
				fetch[k-1].hi = max(fetch[k-1].hi, want.hi)
			} else {
				fetch = append(fetch, want)
			}
		})
	}
	return fetch, flights, waiting
}

// fetchSpans fetches ranges of the piece's chunk, long ones in parts.
func (r *reader) fetchSpans(ctx context.Context, p piece, spans []span) error {
	var parts []span
	for _, s := range spans {
		for s.len() > 2*fetchUnit {
			cut := (s.lo/fetchUnit + 1) * fetchUnit
			parts = append(parts, span{s.lo, cut})
			s.lo = cut
		}
		parts = append(parts, s)
	}
	if len(parts) == 0 {
		return nil
	}
	if len(parts) == 1 {
		return r.fetchSpan(ctx, p, parts[0])
	}
	return parallel(ctx, parts, func(ctx context.Context, s span) error { return r.fetchSpan(ctx, p, s) })
}

// fetchSpan fetches a range of the piece's chunk, copies what the piece wants of it, and caches it.
func (r *reader) fetchSpan(ctx context.Context, p piece, s span) error {
	f := r.cache.begin(p.chunk, s.lo, s.hi)
	payload, err := r.fetch(ctx, location{chunk: p.chunk, layout: p.layout, off: s.lo, n: s.len(), length: p.length, servers: p.servers, tries: p.tries})
	if err == nil && p.dst != nil {
		lo, hi := max(s.lo, p.off), min(s.hi, p.off+uint64(p.n))
		copyRange(p.dst[lo-p.off:hi-p.off], payload, int(lo-s.lo))
	}
	r.cache.end(p.chunk, f, payload)
	payload.Free()
	// What was read beside what was asked for may be lost, such as the end of a chunk that was not synced.
	if exact := (span{max(s.lo, p.off), min(s.hi, p.off+uint64(p.n))}); errors.Is(err, errAllBad) && p.dst != nil && exact != s {
		return r.fetchSpan(ctx, p, exact)
	}
	return err
}

type outcome struct {
	server  chunk.ServerID
	payload mem.BufferSlice
	err     error
}

// fetch reads a range from the best replica, and from the next one beside it should it be slow, or after it should it fail.
// The caller frees the payload, which matches its checksums. The error is errAllBad, errUnreachable or that of ctx.
func (r *reader) fetch(ctx context.Context, loc location) (mem.BufferSlice, error) {
	if loc.layout.Coded() {
		return r.fetchCoded(ctx, loc)
	}
	order := r.order(ctx, loc)
	if len(order) == 0 {
		return nil, errUnreachable
	}
	// Each time around the replicas get more time: it may be this machine that is slow.
	timeout := r.s.cfg.ReadTimeout << min(loc.tries, 4)
	try, cancel := context.WithCancel(ctx)
	results := make(chan outcome, len(order))
	asked, answered, bad := 0, 0, 0
	ask := func() {
		server := order[asked]
		asked++
		if !r.s.tasks.run(func() { results <- r.ask(try, server, loc, readPatience*timeout) }) {
			results <- outcome{server: server.id, err: context.Canceled}
		}
	}
	defer func() {
		cancel()
		if late := asked - answered; late > 0 {
			r.s.tasks.run(func() {
				for range late {
					o := <-results
					o.payload.Free()
				}
			})
		}
	}()
	ask()
	soft := time.NewTimer(timeout)
	defer soft.Stop()
	var errs []error
	for {
		select {
		case o := <-results:
			answered++
			if o.err == nil {
				r.s.metrics.fetched.Add(float64(loc.n))
				return o.payload, nil
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if r.blame(loc.chunk, o) {
				bad++
			}
			errs = append(errs, fmt.Errorf("server %d: %w", o.server, o.err))
			if asked < len(order) {
				r.s.metrics.retries.Inc()
				ask()
				soft.Reset(timeout)
				continue
			}
			if answered < asked {
				continue
			}
			reason := errUnreachable
			if bad == len(loc.servers) {
				reason = errAllBad
			}
			return nil, fmt.Errorf("chunk %v at %d: %w: %w", loc.chunk, loc.off, reason, errors.Join(errs...))
		case <-soft.C:
			if asked < len(order) {
				r.s.health.slow(order[asked-1].id)
				r.s.metrics.hedged.Inc()
				ask()
				soft.Reset(timeout)
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// blame records that a replica failed and tells whether it answered that it has not got the bytes.
func (r *reader) blame(id chunk.ID, o outcome) bool {
	if definite(o.err) {
		if rpc.Kind(o.err) == rpc.ChunkNotFound {
			r.moved.suspect(id.Chunk())
		}
		r.s.metrics.corrupt.Inc()
		r.s.log.Warn("a copy of a chunk is missing or damaged; reading another", "server", o.server, "chunk", id, "error", o.err)
		r.s.health.badCopy(o.server, id, o.err)
		return true
	}
	if !errors.Is(o.err, context.Canceled) {
		r.s.health.failed(o.server, false, o.err)
	}
	return false
}

// definite tells whether an error says that the server has not got the bytes, rather than that it did not answer.
func definite(err error) bool {
	switch rpc.Kind(err) {
	case rpc.ChunkNotFound, rpc.ChunkCorrupt:
		return true
	case rpc.WrongCluster: // another server lives at that address now
		return false
	}
	switch status.Code(err) {
	case codes.NotFound, codes.DataLoss, codes.OutOfRange, codes.InvalidArgument:
		return true
	}
	return false
}

func (r *reader) ask(ctx context.Context, server candidate, loc location, timeout time.Duration) outcome {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	server.outstanding.Add(1)
	defer server.outstanding.Add(-1)
	o := outcome{server: server.id}
	conn, err := r.s.cfg.Pool.Get(server.address)
	if err == nil {
		_, o.payload, err = rpc.ReadChunk(ctx, conn, &pb.ReadRequest{Chunk: uint64(loc.chunk), Offset: loc.off, Length: uint32(loc.n),
			Cluster: r.s.meta.Cluster(), Session: r.s.meta.Session(), Server: uint32(server.id)})
	}
	o.err = err
	if err == nil {
		r.s.health.good(server.id)
	}
	return o
}

// candidate is a server that may be asked.
type candidate struct {
	id          chunk.ServerID
	address     string
	outstanding *atomic.Int64
	rank        int64
}

// The parts of a candidate's rank. Whoever has rankUnfit or more is asked when nobody else is left.
const (
	rankLoad  = 1 << 16
	rankUnfit = 1 << 40
)

// order returns the servers of a location, the best first: healthy ones, then by how much they have to do, coarsely, so
// that chunks spread over servers by their id.
func (r *reader) order(ctx context.Context, loc location) []candidate {
	out := make([]candidate, 0, len(loc.servers))
	for i := range loc.servers {
		if c := r.candidate(ctx, loc, i); c.address != "" {
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b candidate) int { return cmp.Compare(a.rank, b.rank) })
	return out
}

// candidate returns one of the servers of a location, without an address if it is not known where it is.
func (r *reader) candidate(ctx context.Context, loc location, i int) candidate {
	id := loc.servers[i]
	address, state, err := r.s.meta.Server(ctx, id)
	if err != nil || address == "" {
		r.moved.suspect(loc.chunk)
		return candidate{id: id}
	}
	c := candidate{id: id, address: address, outstanding: r.s.health.outstanding(id)}
	switch state {
	case pb.ServerState_SERVER_STATE_DEAD:
		c.rank += 4 * rankUnfit
		r.moved.suspect(loc.chunk)
	case pb.ServerState_SERVER_STATE_SUSPECT:
		c.rank += 2 * rankUnfit
	}
	if r.s.health.unready(id) {
		c.rank += 3 * rankUnfit
	}
	c.rank += c.outstanding.Load() >> 3 * rankLoad
	c.rank += int64((uint64(loc.chunk) + uint64(i)) % uint64(len(loc.servers)))
	return c
}
