package chunkserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// copyReadTimeout is how long a source may take for one read before another is asked.
const copyReadTimeout = 15 * time.Second

// source is the chunk that a copy is made of, on the servers that can be asked for it.
type source struct {
	s       *Server
	cluster []byte
	id      chunk.ID
	layout  chunk.Layout
	length  uint64
	servers []uint32          // by shard; 0: none
	address map[uint32]string // of servers
	turn    int               // so that not all copies ask the same server first
	buffers *frameBuffers

	mu     sync.Mutex
	failed []int // by shard: reads that failed
}

func (s *Server) newSource(c *pb.ChunkInfo, servers []*pb.ServerInfo, buffers *frameBuffers) (*source, error) {
	id := s.store.identity()
	src := &source{
		s: s, cluster: id.Cluster[:], id: chunk.ID(c.GetId()), layout: chunk.LayoutOf(c.GetLayout()),
		length: c.GetLength(), servers: slices.Clone(c.GetServers()), address: map[uint32]string{}, buffers: buffers,
		failed: make([]int, len(c.GetServers())),
	}
	if err := src.layout.Check(true); err != nil {
		return nil, fmt.Errorf("layout of the source: %w", err)
	}
	if src.layout.Coded() && len(src.servers) != src.layout.Width() {
		return nil, fmt.Errorf("%d servers of a source of %d shards", len(src.servers), src.layout.Width())
	}
	if src.id == 0 || src.length == 0 || src.length > chunk.MaxLength {
		return nil, fmt.Errorf("source %v of %d bytes", src.id, src.length)
	}
	for _, info := range servers {
		src.address[info.Id] = info.Address
	}
	for i, server := range src.servers {
		if src.address[server] == "" {
			src.servers[i] = 0
		}
	}
	src.turn = rand.IntN(max(1, len(src.servers)))
	return src, nil
}

// padded is how much of the chunk its shards hold.
func (src *source) padded() uint64 { return uint64(src.layout.Padded(int(src.length))) }

// shardLength is how long each shard is.
func (src *source) shardLength() uint64 { return src.layout.ShardLength(src.padded()) }

// sound says that a shard can be asked for and did not fail yet.
func (src *source) sound(shard int) bool {
	src.mu.Lock()
	defer src.mu.Unlock()
	return shard < len(src.servers) && src.servers[shard] != 0 && src.failed[shard] == 0
}

// holders returns the shards that can be asked for, those that failed least first.
func (src *source) holders() []int {
	src.mu.Lock()
	defer src.mu.Unlock()
	var all []int
	for i := range src.servers {
		if at := (i + src.turn) % len(src.servers); src.servers[at] != 0 {
			all = append(all, at)
		}
	}
	slices.SortStableFunc(all, func(a, b int) int { return cmp.Compare(src.failed[a], src.failed[b]) })
	return all
}

// read asks the holder of a shard for a range of it, and checks what comes against its checksums.
func (src *source) read(ctx context.Context, shard int, off uint64, n int) fetched {
	server := src.servers[shard]
	f := src.ask(ctx, server, src.id.Stored(src.layout, shard), off, n)
	if f.err != nil && ctx.Err() == nil {
		src.mu.Lock()
		src.failed[shard]++
		first := src.failed[shard] == 1
		src.mu.Unlock()
		f.err = fmt.Errorf("chunk server %d (%s): %w", server, src.address[server], f.err)
		if first {
			src.s.log.Info("a source of a copy failed; trying others", "chunk", src.id, "shard", shard, "offset", off, "err", f.err)
		}
		src.s.metrics.copySourceFailures.Inc()
	}
	return f
}

func (src *source) ask(ctx context.Context, server uint32, id chunk.ID, off uint64, n int) fetched {
	ctx, cancel := context.WithTimeout(ctx, copyReadTimeout)
	defer cancel()
	conn, err := src.s.pool.Get(src.address[server])
	if err != nil {
		return fetched{err: err}
	}
	sums, payload, err := rpc.ReadChunk(ctx, conn, &pb.ReadRequest{Chunk: uint64(id), Offset: off, Length: uint32(n), Cluster: src.cluster, Server: server})
	return fetched{sums, payload, err}
}

// copyOf returns a range that all these shards hold, from the first that delivers it.
func (src *source) copyOf(ctx context.Context, shards []int, off uint64, n int) fetched {
	if len(shards) == 0 {
		return fetched{err: fmt.Errorf("chunk %v: there is no source to ask", src.id)}
	}
	var errs []error
	for _, shard := range shards {
		f := src.read(ctx, shard, off, n)
		if f.err == nil || ctx.Err() != nil {
			return f
		}
		errs = append(errs, f.err)
	}
	return fetched{err: fmt.Errorf("chunk %v: no source has the bytes at %d: %w", src.id, off, errors.Join(errs...))}
}

// windows is a range of several shards.
type windows struct {
	shards [][]byte // by shard; those that were asked for, and what they were computed from
	held   []mem.Buffer
}

func (w *windows) free() {
	for _, b := range w.held {
		b.Free()
	}
}

// windows returns the range [lo, hi) of the wanted shards, computing those that cannot be read from the others.
func (src *source) windows(ctx context.Context, lo, hi uint64, wanted []int) (*windows, error) {
	w := &windows{shards: make([][]byte, src.layout.Width())}
	err := src.fill(ctx, w, lo, int(hi-lo), wanted)
	if err != nil {
		w.free()
		return nil, err
	}
	return w, nil
}

func (src *source) fill(ctx context.Context, w *windows, lo uint64, n int, wanted []int) error {
	var direct, others []int
	for _, shard := range wanted {
		if src.sound(shard) {
			direct = append(direct, shard)
		}
	}
	errs := src.readInto(ctx, w, direct, lo, n)
	missing := func(shard int) bool { return w.shards[shard] == nil }
	if !slices.ContainsFunc(wanted, missing) {
		return nil
	}
	for _, shard := range src.holders() {
		if !slices.Contains(direct, shard) {
			others = append(others, shard)
		}
	}
	for ctx.Err() == nil {
		lack := src.layout.Data
		for _, s := range w.shards {
			if s != nil {
				lack--
			}
		}
		if lack <= 0 {
			break
		}
		if len(others) < lack {
			return fmt.Errorf("chunk %v: too few shards have the bytes at %d: %w", src.id, lo, errors.Join(errs...))
		}
		errs = append(errs, src.readInto(ctx, w, others[:lack], lo, n)...)
		others = others[lack:]
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	mask := make([]bool, src.layout.Width())
	for _, shard := range wanted {
		mask[shard] = missing(shard)
	}
	if err := src.layout.Rebuild(w.shards, mask); err != nil {
		return fmt.Errorf("chunk %v: rebuild the bytes at %d: %w", src.id, lo, err)
	}
	return nil
}

// readInto reads the range of several shards at once, and returns what failed.
func (src *source) readInto(ctx context.Context, w *windows, shards []int, off uint64, n int) (errs []error) {
	got := make([]fetched, len(shards))
	var g errgroup.Group
	for i, shard := range shards {
		g.Go(func() error {
			got[i] = src.read(ctx, shard, off, n)
			return nil
		})
	}
	_ = g.Wait()
	for i, f := range got {
		if f.err != nil {
			errs = append(errs, f.err)
			continue
		}
		b := f.payload.MaterializeToBuffer(src.buffers)
		f.payload.Free()
		w.held = append(w.held, b)
		w.shards[shards[i]] = b.ReadOnlyData() // of which nothing but what is missing is ever written
	}
	return errs
}

// bytes fills dst with the chunk's bytes from off on. What follows its end is zeros, as in the last row of a code.
func (src *source) bytes(ctx context.Context, dst []byte, off uint64) error {
	if end := src.padded(); off >= end {
		clear(dst)
		return nil
	} else if rest := end - off; uint64(len(dst)) > rest {
		clear(dst[rest:])
		dst = dst[:rest]
	}
	for len(dst) > 0 {
		n := min(len(dst), chunk.MaxFrame)
		var err error
		if src.layout.Coded() {
			err = src.gather(ctx, dst[:n], off)
		} else if f := src.copyOf(ctx, src.holders(), off, n); f.err != nil {
			err = f.err
		} else {
			f.payload.CopyTo(dst[:n])
			f.payload.Free()
		}
		if err != nil {
			return err
		}
		dst, off = dst[n:], off+uint64(n)
	}
	return nil
}

// gather puts bytes of a coded chunk together from its data shards.
func (src *source) gather(ctx context.Context, dst []byte, off uint64) error {
	l, end := src.layout, off+uint64(len(dst))
	lo, hi := l.Window(off, end)
	var wanted []int
	l.Runs(off, end, func(r chunk.Run) {
		if len(wanted) < l.Data && !slices.Contains(wanted, r.Shard) {
			wanted = append(wanted, r.Shard)
		}
	})
	w, err := src.windows(ctx, lo, hi, wanted)
	if err != nil {
		return err
	}
	defer w.free()
	l.Runs(off, end, func(r chunk.Run) { copy(dst[r.Chunk-off:], w.shards[r.Shard][r.Offset-lo:][:r.Len]) })
	return nil
}

// frameBuffers are the buffers of one copy, used again and again.
type frameBuffers struct{ pool sync.Pool }

func (f *frameBuffers) take(n int) *[]byte {
	if b, ok := f.pool.Get().(*[]byte); ok && cap(*b) >= n {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n)
	return &b
}

// Get implements mem.BufferPool.
func (f *frameBuffers) Get(n int) *[]byte { return f.take(n) }

// Put implements mem.BufferPool.
func (f *frameBuffers) Put(b *[]byte) { f.pool.Put(b) }

var _ mem.BufferPool = (*frameBuffers)(nil)
