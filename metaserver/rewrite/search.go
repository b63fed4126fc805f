package rewrite

import (
	"context"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	manyExtents = 256      // in a block of a file that make it worth putting together
	smallExtent = 64 << 10 // bytes of them in the mean
)

// found is extents of a block that are to be rewritten.
type found struct {
	at      namespace.FileBlock
	want    chunk.Layout
	extents int // in the block
	list    []namespace.Extent
}

// search goes through all files for what refers to the chosen chunks, and for blocks in too many pieces, and rewrites that.
// It returns how many jobs failed.
func (e *Engine) search(ctx context.Context, g *garbage, now time.Time) (failed int, err error) {
	p := e.newPass(ctx)
	defer p.wait()
	s := &searcher{e: e, chosen: make(map[chunk.ID]struct{}, len(g.chosen)), readable: newReadable(e.cluster.Servers()), now: time.Now().UnixNano()}
	for _, c := range g.chosen {
		s.chosen[c.id] = struct{}{}
	}
	b := newBuilder(p.emit)
	var working time.Duration
	for from, more := (namespace.FileBlock{}), true; more; {
		if err := p.ctx.Err(); err != nil {
			return 0, err
		}
		at := time.Now()
		var page []found
		if page, from, more, err = s.page(from); err != nil {
			return 0, err
		}
		working += time.Since(at)
		for _, f := range page {
			if err := b.add(p.ctx, f.want, f.at, f.extents, f.list); err != nil {
				return 0, err
			}
		}
	}
	e.look.search, e.look.searchT = time.Now(), working
	if err := b.flush(p.ctx); err != nil {
		return 0, err
	}
	moved, failed := p.wait()
	if moved > 0 || failed > 0 {
		e.log.Info("rewrote data to give space back", "chunks", len(g.chosen), "gain", g.gain, "bytes", moved, "scattered_blocks", s.scattered, "failed_jobs", failed, "took", time.Since(now).Round(time.Millisecond))
	}
	return failed, nil
}

// searcher reads extents, some at a time so that commands get in between.
type searcher struct {
	e         *Engine
	chosen    map[chunk.ID]struct{}
	readable  *readable
	now       int64 // ns
	scattered int   // blocks in too many pieces
}

func (s *searcher) page(from namespace.FileBlock) (out []found, next namespace.FileBlock, more bool, err error) {
	blocks, extents := 0, 0
	err = s.e.cluster.View(func(r kv.Reader) error {
		layouts := layouts{r: r, fallback: s.e.cluster.Default()}
		namespace.Blocks(r, from, func(b namespace.BlockExtents) bool {
			if blocks++; blocks > blocksAView || extents > extentsAView {
				next, more = b.FileBlock, true
				return false
			}
			extents += b.Len()
			if list := s.block(r, b); len(list) > 0 {
				if want, ok := layouts.of(b.Inode); ok {
					out = append(out, found{b.FileBlock, want, b.Len(), list})
				}
			}
			return true
		})
		return nil
	})
	return out, next, more, err
}

// block returns what of a block is to be rewritten.
func (s *searcher) block(r kv.Reader, b namespace.BlockExtents) []namespace.Extent {
	var list []namespace.Extent
	scattered := s.isScattered(r, b)
	for i := range b.Len() {
		x := b.At(i)
		if _, ok := s.chosen[x.Chunk]; ok || scattered && s.readable.sealed(r, x.Chunk) != nil {
			list = append(list, x)
		}
	}
	return list
}

// isScattered tells whether a block is in too many pieces that would become fewer, and nobody is writing to it.
func (s *searcher) isScattered(r kv.Reader, b namespace.BlockExtents) bool {
	n := b.Len()
	if n <= manyExtents {
		return false
	}
	var bytes, end uint64
	runs := 0
	for i := range n {
		x := b.At(i)
		if bytes += x.Length; x.Offset != end || i == 0 {
			runs++
		}
		end = x.Offset + x.Length
	}
	if n-runs <= manyExtents || bytes/uint64(n) >= smallExtent {
		return false
	}
	a, err := namespace.GetAttr(r, b.Inode)
	if err != nil || s.now-a.Ctime < int64(s.e.cfg.Quiet) {
		return false
	}
	s.scattered++
	return true
}

// layouts are those that files are to be stored in, read once for blocks of one file that follow each other.
type layouts struct {
	r        kv.Reader
	fallback chunk.Layout
	inode    uint64
	layout   chunk.Layout
	ok       bool
}

func (l *layouts) of(inode uint64) (chunk.Layout, bool) {
	if l.inode != inode {
		layout, err := namespace.LayoutOf(l.r, inode)
		if layout.IsZero() {
			layout = l.fallback
		}
		l.inode, l.layout, l.ok = inode, layout, err == nil
	}
	return l.layout, l.ok
}

// readable tells which chunks can be the source of others.
type readable struct {
	servers map[chunk.ServerID]*pb.ServerInfo
	known   map[chunk.ID]*namespace.ChunkRecord // nil: not to be read, or still being written
}

func newReadable(servers []*pb.ServerInfo) *readable {
	out := &readable{servers: map[chunk.ServerID]*pb.ServerInfo{}, known: map[chunk.ID]*namespace.ChunkRecord{}}
	for _, s := range servers {
		if s.State != pb.ServerState_SERVER_STATE_DEAD {
			out.servers[chunk.ServerID(s.Id)] = s
		}
	}
	return out
}

const maxKnown = 64 << 10

// sealed returns the record of a chunk that can be a source, nil for every other.
func (v *readable) sealed(r kv.Reader, id chunk.ID) *namespace.ChunkRecord {
	if c, ok := v.known[id]; ok {
		return c
	}
	if len(v.known) >= maxKnown {
		clear(v.known)
	}
	c, ok := namespace.Chunk(r, id)
	if !ok || c.Owner != 0 || !v.can(c) {
		c = nil
	}
	v.known[id] = c
	return c
}

// can tells whether enough shards of a chunk are on servers that are up.
func (v *readable) can(c *namespace.ChunkRecord) bool {
	_, alive := source(c, v.servers)
	return alive >= c.Layout.Data
}
