package data

import (
	"context"
	"slices"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// maxRetained is how many bytes of a chunk are kept in memory before they are brought to its targets' disks. Less memory is
// shared by four chunks.
const maxRetained = 32 << 20

// retained is the frames of a chunk that enough targets have received, but have perhaps not on disk, in chunk order. They stay in
// memory, committed or not: should the targets lose power, they are sent again.
type retained struct {
	frames []*frame
	size   int64
	since  time.Time // when there was one, or when it was last asked that they be brought to disk
}

// retain keeps a frame that has settled until it is durable.
func (c *openChunk) retain(fr *frame) {
	if fr.gone {
		fr.free()
		return
	}
	k := &c.kept
	if len(k.frames) == 0 {
		k.since = time.Now()
	}
	k.frames = append(k.frames, fr)
	k.size += fr.size
}

// forgo gives up the memory of the frames that end below a length which is on enough disks.
func (c *openChunk) forgo(durable uint64) {
	k := &c.kept
	n := 0
	for ; n < len(k.frames) && k.frames[n].end() <= durable; n++ {
		fr := k.frames[n]
		k.frames[n] = nil
		k.size -= fr.size
		c.firm = max(c.firm, fr.end())
		c.w.durable(fr)
	}
	if k.frames = k.frames[n:]; len(k.frames) == 0 {
		k.frames = nil
		return
	}
	if b := c.w.s.buffers; k.size >= min(maxRetained, b.budget.size/4) || b.budget.short() {
		c.bring()
	}
}

// filter leaves out the frames that have left the chunk.
func (k *retained) filter(c *openChunk) {
	k.frames = slices.DeleteFunc(k.frames, func(fr *frame) bool { return fr.chunk != c || fr.gone || fr.rescued })
	k.size = 0
	for _, fr := range k.frames {
		k.size += fr.size
	}
}

// bring has what is kept in memory brought to the targets' disks. What came after the last request waits until that is done:
// one sync after the other, each of much, costs the disks little.
func (c *openChunk) bring() {
	k := &c.kept
	if len(k.frames) > 0 && k.frames[0].end() > c.syncEnd {
		k.since = time.Now()
		c.sync(k.frames[len(k.frames)-1].end())
	}
}

// bringOld does so for what has been in memory for long.
func (w *writer) bringOld(now time.Time) {
	for c := range w.chunks {
		if now.Sub(c.kept.since) >= w.s.cfg.SyncAfter {
			c.bring()
		}
	}
}

// bringAll does so for everything: memory is short.
func (w *writer) bringAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.chunks {
		c.bring()
	}
}

// durable is called when a frame is on enough disks.
func (w *writer) durable(fr *frame) {
	if fr.gone {
		return
	}
	fr.durable = true
	switch {
	case fr.home != nil: // until its extents say so, it may be lost again
		w.arrived = append(w.arrived, fr)
		wake(w.needRelocate)
	case fr.published:
		w.secure(fr)
	default:
		fr.free()
	}
	fr.notify()
}

// publish records that a frame is committed where it is, but perhaps on no disk.
func (w *writer) publish(fr *frame) {
	fr.published = true
	inode := fr.file.inode
	if fr.next = w.unsynced[inode]; fr.next != nil {
		fr.next.prev = fr
	}
	w.unsynced[inode] = fr
}

// secure is called when a frame that was committed is on enough disks where its extents say that it is. The caller has the chunk
// retired.
func (w *writer) secure(fr *frame) {
	w.synced(fr)
	fr.gone = true
	fr.free()
	fr.notify()
	if fr.chunk != nil {
		delete(fr.chunk.held, fr)
	}
	if h := fr.home; h != nil {
		fr.home = nil
		h.notify()
		h.release(fr)
	}
}

// synced takes a frame off the list of those that an inode waits for.
func (w *writer) synced(fr *frame) {
	switch {
	case fr.prev != nil:
		fr.prev.next = fr.next
	case fr.next != nil:
		w.unsynced[fr.file.inode] = fr.next
	default:
		delete(w.unsynced, fr.file.inode)
	}
	if fr.next != nil {
		fr.next.prev = fr.prev
	}
	fr.prev, fr.next = nil, nil
}

// syncInode returns once everything of an inode that was committed earlier is on the disks of enough servers.
func (w *writer) syncInode(ctx context.Context, inode uint64) error {
	var frames []*frame
	w.mu.Lock()
	for fr := w.unsynced[inode]; fr != nil; fr = fr.next {
		frames = append(frames, fr)
		if fr.settled && !fr.durable { // else it is on its way to a disk
			fr.chunk.sync(fr.end()) // all, before the first is waited for
		}
	}
	w.mu.Unlock()
	for _, fr := range frames {
		if err := w.secured(ctx, fr); err != nil {
			return err
		}
	}
	return nil
}

// secured waits until a frame that was committed is safe.
func (w *writer) secured(ctx context.Context, fr *frame) error {
	for {
		w.mu.Lock()
		if fr.gone || fr.err != nil {
			w.mu.Unlock()
			return fr.err
		}
		wait := fr.wait()
		w.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// keeps tells whether this client may have bytes of a chunk in memory that were committed there.
func (w *writer) keeps(id chunk.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.chunks {
		if c.id == id {
			return len(c.held) > 0
		}
	}
	return false
}
