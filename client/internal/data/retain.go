package data

import "time"

// maxRetained is how many bytes of a chunk are kept in memory before they are brought to its targets' disks. Less memory is
// shared by four chunks.
const maxRetained = 32 << 20

// retained is the frames of a chunk that enough targets have received, but have perhaps not on disk, in chunk order. They stay in
// memory: should the targets lose power, they are sent again.
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
		fr.durable = true
		fr.free()
		fr.notify()
	}
	if k.frames = k.frames[n:]; len(k.frames) == 0 {
		k.frames = nil
		return
	}
	if b := c.w.s.buffers; k.size >= min(maxRetained, b.budget.size/4) || b.budget.short() {
		c.bring()
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
