package data

import (
	"context"
	"errors"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/posix"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// errChunkLost says that a chunk lost too many targets between settling and the commit; what was in it moves.
var errChunkLost = errors.New("a chunk was lost before its commit")

// part is a commit's worth of extents with the chunks that they name.
type part struct {
	extents []*pb.Extent
	chunks  []*openChunk
}

// settle waits until enough servers hold every frame of a generation, on their disks if it is to be durable, and pins the
// frames where they are.
func (w *writer) settle(ctx context.Context, g *generation) error {
	w.await(g.frames)
	for from := 0; ; {
		w.mu.Lock()
		durable := g.durable.Load()
		var wait <-chan struct{}
		var err error
		from, wait, err = w.unsettled(g.frames, from, durable)
		if err == nil && wait == nil {
			// All were settled when they were looked at; are they now, all at once?
			if from, wait, err = w.unsettled(g.frames, 0, durable); err == nil && wait == nil {
				for _, fr := range g.frames {
					fr.pinned = true
				}
				w.mu.Unlock()
				return nil
			}
		}
		w.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// await says that somebody waits until frames are settled.
func (w *writer) await(frames []*frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fr := range frames {
		fr.awaited = true
		if c := fr.chunk; c != nil && !fr.settled {
			c.awaited = max(c.awaited, fr.end())
		}
	}
}

// unsettled returns the first frame, from one on, that is not as it should be, and what to wait for.
func (w *writer) unsettled(frames []*frame, from int, durable bool) (int, <-chan struct{}, error) {
	if durable && from < len(frames) { // ask for all before waiting for the first
		for _, fr := range frames[from:] {
			if fr.settled && !fr.durable {
				fr.chunk.sync(fr.end())
			}
		}
	}
	for i := from; i < len(frames); i++ {
		switch fr := frames[i]; {
		case fr.err != nil:
			return i, nil, fr.err
		case !fr.settled:
			return i, fr.wait(), nil
		case durable && !fr.durable:
			fr.chunk.sync(fr.end())
			return i, fr.wait(), nil
		}
	}
	return len(frames), nil, nil
}

// plan turns what a generation wrote into commits.
func (w *writer) plan(g *generation) []*part {
	w.mu.Lock()
	defer w.mu.Unlock()
	var parts []*part
	var p *part
	var last *openChunk
	for _, at := range g.over {
		c, off := at.fr.chunk, at.fr.off+uint64(at.pos)
		if p != nil && last == c {
			if e := p.extents[len(p.extents)-1]; e.Offset+e.Length == at.off && e.ChunkOffset+e.Length == off {
				e.Length += uint64(at.n)
				c.commit(off + uint64(at.n))
				continue
			}
		}
		if p == nil || len(p.extents) == maxExtents {
			p, last = new(part), nil
			parts = append(parts, p)
		}
		p.extents = append(p.extents, &pb.Extent{Offset: at.off, Length: uint64(at.n), Chunk: uint64(c.id), ChunkOffset: off})
		c.commit(off + uint64(at.n))
		if c != last {
			p.add(c)
			last = c
		}
	}
	return parts
}

// commit counts bytes below end among those that commits name. Of a code whole rows are.
func (c *openChunk) commit(end uint64) {
	c.committed = max(c.committed, uint64(c.layout.Padded(int(end))))
}

// add counts a commit of the chunk in, once for each part.
func (p *part) add(c *openChunk) {
	for i := len(p.chunks) - 1; i >= 0; i-- {
		if p.chunks[i] == c {
			return
		}
	}
	p.chunks = append(p.chunks, c)
	c.commits++
}

// chunkCommits says for every chunk of a part how long it is and who holds it. false: one is lost.
func (w *writer) chunkCommits(p *part) ([]*pb.ChunkCommit, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]*pb.ChunkCommit, len(p.chunks))
	for i, c := range p.chunks {
		if live, received, _ := c.holders(); live < c.minimum || received < c.committed {
			return nil, false
		}
		servers := c.servers(c.committed)
		c.recorded = servers
		out[i] = &pb.ChunkCommit{Chunk: uint64(c.id), Length: c.committed, Servers: servers}
	}
	return out, true
}

// conclude unpins the frames of a generation. After success those that are on enough disks are done with; base is where in the file
// the generation's offsets count from. Else those of chunks that were lost, or refused by the metaserver, move.
func (w *writer) conclude(g *generation, parts []*part, base uint64, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		g.noteBlocks(base)
	}
	for _, fr := range g.frames {
		fr.pinned = false
		switch {
		case err != nil:
			if c := fr.chunk; c != nil && (c.lost || c.session != w.session) {
				c.lose() // no extent may name it, so that it is of no part
			}
		case fr.durable || len(fr.blocks) == 0:
			w.forgetFrame(fr)
		default:
			w.publish(fr)
		}
	}
	refused := refusal(err) == syscall.EINVAL
	unknown := err != nil && err != errChunkLost && refusal(err) == 0 // it may have been made
	unsure := unknown || err != nil && (len(parts) > 1 || g.session != w.meta.SessionGen())
	for _, p := range parts {
		for _, c := range p.chunks {
			c.commits--
			c.unsure = c.unsure || unsure
			switch {
			case c.lost || refused:
				c.lose()
			default:
				c.retire()
			}
		}
	}
}

// noteBlocks notes where in the file the frames are that are not durable.
func (g *generation) noteBlocks(base uint64) {
	for _, at := range g.over {
		fr := at.fr
		if fr.durable {
			continue
		}
		for n := (base + at.off) / posix.ExtentBlock; n <= (base+at.end()-1)/posix.ExtentBlock; n++ {
			if k := len(fr.blocks); k == 0 || fr.blocks[k-1] < n {
				fr.blocks = append(fr.blocks, n)
			}
		}
	}
}
