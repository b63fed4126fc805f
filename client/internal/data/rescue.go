package data

import (
	"errors"
	"slices"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/rpc"
)

// reroute moves frames out of a lost chunk: those in memory are sent again, the others are read back first.
func (w *writer) reroute(c *openChunk, resend, reread []*frame) {
	if len(resend)+len(reread) > 0 {
		c.pool.failures++
	}
	slices.SortFunc(resend, func(a, b *frame) int { return int(a.off) - int(b.off) })
	full := c.crowded && c.diskFull()
	for _, fr := range resend {
		fr.chunk, fr.off, fr.settled, fr.durable = nil, 0, false, false
		w.s.metrics.resent.Inc()
		if fr.published {
			fr.sync = true // its extents are to change as soon as it is on disk
		} else if full {
			if fr.full++; fr.full >= maxFullTries {
				w.lost(fr, fserr.New(syscall.ENOSPC, "write inode %d", fr.file.inode))
				continue
			}
		}
		if fr.gone {
			fr.free()
			continue
		}
		w.poolFor(fr).wait(fr) // the allocator places it, after a pause if chunk after chunk is lost
	}
	c.pool.keep = spareChunks
	wake(c.pool.need)
	if len(reread) > 0 {
		w.s.tasks.run(func() { w.rescue(c, reread) })
	}
}

// rescue reads frames that too few live servers hold back from those that do, and sends them again.
func (w *writer) rescue(c *openChunk, frames []*frame) {
	slices.SortFunc(frames, func(a, b *frame) int { return int(a.off) - int(b.off) })
	for _, fr := range frames {
		b, err := w.readBack(c, fr)
		w.mu.Lock()
		fr.rescued = false
		c.release(fr)
		switch {
		case fr.gone || fr.err != nil:
			if b != nil {
				w.s.buffers.Put(b)
			}
		case err != nil:
			w.lost(fr, err)
		default:
			fr.chunk, fr.off = nil, 0
			fr.keep(b)
			w.s.metrics.resent.Inc()
			w.poolFor(fr).wait(fr)
		}
		w.mu.Unlock()
	}
}

// readBack reads a frame's bytes from any server that ever acknowledged them; it waits for servers that cannot be reached.
func (w *writer) readBack(c *openChunk, fr *frame) (*[]byte, error) {
	ctx := w.s.ctx
	for attempt := 0; ; attempt++ {
		w.mu.Lock()
		over := fr.gone || fr.err != nil
		from := c.locate(fr, 0, fr.n)
		from.tries = attempt
		w.mu.Unlock()
		if over {
			return nil, nil
		}
		payload, err := w.s.reader.fetch(ctx, from)
		if err == nil {
			if i := rpc.Mismatch(payload, fr.sums); i >= 0 {
				payload.Free()
				return nil, fserr.New(syscall.EIO, "chunk %v: what was written at %d cannot be read back", c.id, fr.off)
			}
			b, err := w.s.buffers.get(ctx, fr.n)
			if err == nil {
				*b = (*b)[:fr.n]
				payload.CopyTo(*b)
			}
			payload.Free()
			return b, err
		}
		if errors.Is(err, errAllBad) {
			return nil, fserr.New(syscall.EIO, "chunk %v: every copy of what was written at %d is lost: %v", c.id, fr.off, err)
		}
		if err := sleep(ctx, backoff(attempt)); err != nil {
			return nil, err
		}
	}
}
