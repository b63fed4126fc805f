package data

import (
	"context"
	"errors"
	"syscall"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Bounds of one Relocate: the metaserver takes 4096 ranges and as many blocks.
const (
	maxRelocated       = 1024
	maxRelocatedBlocks = 4096
)

// relocateInBackground has the extents of committed frames that had to leave their chunk refer to where they are now.
func (w *writer) relocateInBackground() {
	ctx := w.s.ctx
	for attempt := 0; ctx.Err() == nil; {
		batches := w.takeArrived()
		if len(batches) == 0 {
			select {
			case <-w.needRelocate:
			case <-ctx.Done():
			}
			continue
		}
		attempt++
		if parallel(ctx, batches, w.relocate) == nil {
			attempt = 0
		} else if sleep(ctx, backoff(attempt)) != nil {
			return
		}
	}
}

// takeArrived returns the frames that are in their new places, those of one inode together, and pins them there.
func (w *writer) takeArrived() (batches [][]*frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followSession()
	open := map[uint64]int{} // inode -> batch that takes more
	blocks := map[uint64]int{}
	for _, fr := range w.arrived {
		if fr.gone || fr.err != nil || fr.pinned || !fr.durable { // it was lost again
			continue
		}
		fr.pinned = true
		inode := fr.file.inode
		i, ok := open[inode]
		if !ok || len(batches[i]) == maxRelocated || blocks[inode]+len(fr.blocks) > maxRelocatedBlocks {
			i = len(batches)
			batches = append(batches, nil)
			open[inode], blocks[inode] = i, 0
		}
		batches[i] = append(batches[i], fr)
		blocks[inode] += len(fr.blocks)
	}
	w.arrived = nil
	return batches
}

// relocate has the extents of some frames of an inode say where they are. An error: it is to be tried again.
func (w *writer) relocate(ctx context.Context, frames []*frame) error {
	op, p := w.planRelocation(frames)
	var ok bool
	err := errChunkLost
	if op.Chunks, ok = w.chunkCommits(p); ok {
		err = w.meta.Relocate(ctx, op)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	again := false // in another place
	for _, c := range p.chunks {
		c.commits--
		again = again || c.session != w.meta.SessionGen()
	}
	again = again || errors.Is(err, errChunkLost) || refusal(err) == syscall.EINVAL
	for _, fr := range frames {
		fr.pinned = false
		switch {
		case err == nil:
			w.secure(fr)
			w.s.metrics.relocated.Inc()
		case !again:
			w.arrived = append(w.arrived, fr)
		}
	}
	for _, c := range p.chunks {
		if err != nil && again || c.lost {
			c.lose()
		}
		c.retire()
	}
	if err == nil || again {
		return nil
	}
	w.log.Warn("data that servers lost is written again, but the metadata cannot be told", "inode", op.Inode, "error", err)
	return err
}

// planRelocation turns frames that were moved into a command.
func (w *writer) planRelocation(frames []*frame) (*pb.Relocate, *part) {
	w.mu.Lock()
	defer w.mu.Unlock()
	op, p := &pb.Relocate{Inode: frames[0].file.inode}, new(part)
	seen := map[uint64]bool{}
	for _, fr := range frames {
		op.Ranges = append(op.Ranges, &pb.RelocatedRange{Chunk: uint64(fr.home.id), From: uint32(fr.homeOff), To: uint32(fr.homeOff) + uint32(fr.n),
			Target: uint64(fr.chunk.id), At: uint32(fr.off)})
		for _, n := range fr.blocks {
			if !seen[n] {
				seen[n] = true
				op.Blocks = append(op.Blocks, n)
			}
		}
		fr.chunk.commit(fr.end())
		p.add(fr.chunk)
	}
	return op, p
}
