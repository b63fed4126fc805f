package data

import (
	"context"
	"errors"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
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
// frames where they are. It returns whether they are durable.
func (w *writer) settle(ctx context.Context, g *generation) (durable bool, err error) {
	for from := 0; ; {
		w.mu.Lock()
		durable = g.durable.Load()
		var wait <-chan struct{}
		from, wait, err = w.unsettled(g.frames, from, durable)
		if err == nil && wait == nil {
			// All were settled when they were looked at; are they now, all at once?
			if from, wait, err = w.unsettled(g.frames, 0, durable); err == nil && wait == nil {
				for _, fr := range g.frames {
					fr.pinned = true
				}
				w.mu.Unlock()
				return durable, nil
			}
		}
		w.mu.Unlock()
		if err != nil {
			return false, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return false, ctx.Err()
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

// conclude unpins the frames of a generation. After success they are done with; else those of chunks that were lost, or
// refused by the metaserver, move.
func (w *writer) conclude(g *generation, parts []*part, durable bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fr := range g.frames {
		fr.pinned = false
		if err == nil {
			if !durable && fr.chunk != nil {
				fr.chunk.unsynced[fr.file.inode] = max(fr.chunk.unsynced[fr.file.inode], fr.end())
			}
			w.forgetFrame(fr)
		} else if fr.chunk != nil && fr.chunk.lost {
			fr.chunk.lose() // no extent may name it, so that it is of no part
		}
	}
	refused := refusal(err) == syscall.EINVAL
	for _, p := range parts {
		for _, c := range p.chunks {
			c.commits--
			switch {
			case c.lost || refused:
				c.lose()
			default:
				c.retire()
			}
		}
	}
}

// syncInode returns once everything of an inode that was committed earlier without being durable is.
func (w *writer) syncInode(ctx context.Context, inode uint64) error {
	w.mu.Lock()
	err := w.unsyncable[inode]
	delete(w.unsyncable, inode)
	ends := map[*openChunk]uint64{} // held on to: a chunk that all servers lost is forgotten at once
	for c := range w.chunks {
		if end, ok := c.unsynced[inode]; ok {
			ends[c] = end
			c.sync(end) // all, before the first is waited for
		}
	}
	w.mu.Unlock()
	for c, end := range ends {
		if err == nil {
			err = w.syncChunk(ctx, c, inode, end)
		}
	}
	return err
}

// syncChunk waits until what an inode has below end of a chunk is on the disks of enough servers.
func (w *writer) syncChunk(ctx context.Context, c *openChunk, inode, end uint64) error {
	for {
		w.mu.Lock()
		lost, degraded := c.syncLost(end)
		switch {
		case lost:
			delete(w.unsyncable, inode) // said herewith
			w.mu.Unlock()
			return errUnsyncable(inode, c)
		case degraded:
			w.log.Warn("synced to fewer disks than wanted: servers failed between close and fsync", "inode", inode, "chunk", c.id, "live", c.live(), "minimum", c.minimum)
		case !c.durableTo(end):
			c.sync(end)
			wait := c.wait()
			w.mu.Unlock()
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if c.unsynced[inode] <= end {
			delete(c.unsynced, inode)
		}
		w.mu.Unlock()
		return nil
	}
}

func errUnsyncable(inode uint64, c *openChunk) error {
	return fserr.New(syscall.EIO, "sync inode %d: too many servers of chunk %v failed before it was on disk", inode, c.id)
}
