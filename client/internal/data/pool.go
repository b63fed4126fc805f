package data

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxShared   = 4       // open chunks that files share
	maxReleased = 16      // the same of wide chunks, which files that have ended leave for the next ones
	sharedBusy  = 1 << 20 // bytes under way to a shared chunk that make another worthwhile
	spareChunks = 4       // chunks allocated ahead of need
	maxAlloc    = 64      // chunks asked for at once
	// shortSpare is how long chunks with fewer servers than they ought to have are kept ahead of need: there may be more by then.
	shortSpare = 10 * time.Second
)

// pool is the open chunks that frames of one kind go to: those of files with one policy and, where that is a code, the full
// frames apart from the others, as they have cells of another size. writer.mu guards it.
//
// What metadata gives for the layout that is wanted may be of another one. Each chunk goes by its own.
type pool struct {
	w    *writer
	want chunk.Layout  // zero: the cluster's default
	need chan struct{} // wakes the allocator

	shared   []*openChunk
	spare    []*openChunk
	waiting  []*frame  // for a chunk
	keep     int       // how many spare chunks to have
	used     time.Time // when a frame was last placed
	failures int       // chunks lost since a frame last settled
	retired  bool      // the allocator is to end
}

// cellFor returns the layout of chunks for a frame of n bytes of a file with that policy. A frame that about fills a row of
// the wide cells is cut into few pieces by them; every other one would be mostly padding there.
func cellFor(policy chunk.Layout, n int) chunk.Layout {
	if !policy.Coded() {
		return policy
	}
	policy.Cell = policy.WideCell()
	if row := policy.Row(); n <= row/8*7 || n > row {
		policy.Cell = chunk.PackedCell
	}
	return policy
}

// wide tells whether the pool is for full frames of a code.
func (p *pool) wide() bool { return p.want.Cell > chunk.PackedCell }

// policy is that of the files whose frames go here.
func (p *pool) policy() chunk.Layout {
	l := p.want
	l.Cell = 0
	return l
}

// packed tells whether the pool is for what is left of a code. All files share its chunks.
func (p *pool) packed() bool { return p.want.Coded() && !p.wide() }

// poolFor returns the pool of a frame.
func (w *writer) poolFor(fr *frame) *pool {
	want := cellFor(fr.policy, fr.n)
	p := w.pools[want]
	if p == nil {
		p = &pool{w: w, want: want, need: make(chan struct{}, 1), used: time.Now()}
		w.pools[want] = p
		w.s.tasks.run(p.allocateAhead)
	}
	return p
}

// share returns a chunk that several files place frames in. nil: there is none yet.
func (p *pool) share(n int) *openChunk {
	var best, fullest *openChunk
	for _, c := range p.shared {
		if c.fits(n) && (best == nil || c.queued() < best.queued()) {
			best = c
		}
		if fullest == nil || c.length > fullest.length {
			fullest = c
		}
	}
	if best != nil && (best.queued() < sharedBusy || len(p.shared) >= maxShared) {
		return best
	}
	if best == nil && len(p.shared) >= maxShared {
		fullest.close()
	}
	if c := p.takeSpare(); c != nil {
		p.shared = append(p.shared, c)
		return c
	}
	return best
}

// takeOwn returns a chunk for one file alone: a shared one that nothing is under way to, so that chunks get filled, or a
// spare one.
func (p *pool) takeOwn(n int) *openChunk {
	for i, c := range p.shared {
		if len(c.queue) == 0 && c.fits(n) {
			p.shared = slices.Delete(p.shared, i, i+1)
			return c
		}
	}
	return p.takeSpare()
}

// takeSpare returns a chunk that was allocated ahead, of which nothing is known yet that speaks against it.
func (p *pool) takeSpare() *openChunk {
	p.keep = spareChunks
	for len(p.spare) > 0 {
		c := p.spare[0]
		if c.outlived() || c.short() && time.Since(c.made) > shortSpare || slices.ContainsFunc(c.targets, func(t *target) bool { return p.w.health.failedSince(t.server, c.made) }) {
			c.close() // takes it off the list
			continue
		}
		p.spare = p.spare[1:]
		if len(p.spare) < spareChunks/2 {
			wake(p.need)
		}
		return c
	}
	wake(p.need)
	return nil
}

// takeBack makes a chunk that a file had to itself one of all.
func (p *pool) takeBack(c *openChunk) {
	limit := maxShared
	if p.wide() {
		limit = maxReleased
	}
	if len(p.shared) >= limit {
		fullest := slices.MaxFunc(p.shared, func(a, b *openChunk) int { return int(a.length) - int(b.length) })
		if c.length >= fullest.length {
			c.close()
			return
		}
		fullest.close()
	}
	p.shared = append(p.shared, c)
}

// wait lets a frame wait for a chunk.
func (p *pool) wait(fr *frame) {
	p.waiting = append(p.waiting, fr)
	wake(p.need)
}

// allocateAhead gets chunks when some are needed. While it fails, frames wait; it never gives up.
func (p *pool) allocateAhead() {
	ctx, log := p.w.s.ctx, p.w.log
	for attempt := 0; ctx.Err() == nil; {
		count, pause, over := p.wanted()
		if over {
			return
		}
		if count == 0 {
			select {
			case <-p.need:
			case <-ctx.Done():
			}
			continue
		}
		if pause > 0 && sleep(ctx, pause) != nil {
			return
		}
		err := p.allocate(ctx, count)
		if err == nil {
			attempt = 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if fserr.Errno(err) == syscall.ENOSPC {
			p.failWaiting(err)
		}
		if attempt == 0 {
			log.Warn("no chunks to write to; waiting for servers", "layout", p.want, "error", err)
		}
		if sleep(ctx, backoff(attempt)) != nil {
			return
		}
		attempt++
	}
}

// wanted returns how many chunks to allocate, and how long to wait before, which is longer the more were lost in a row. It
// places what waits if it can.
func (p *pool) wanted() (count int, pause time.Duration, over bool) {
	w := p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followSession()
	if p.retired {
		return 0, 0, true
	}
	if w.closed && len(p.waiting) == 0 {
		return 0, 0, false
	}
	if p.failures == 0 || len(p.spare) > 0 {
		p.placeWaiting()
	}
	n := p.keep - len(p.spare)
	if len(p.waiting) > 0 {
		var bytes int
		for _, fr := range p.waiting {
			bytes += fr.n
		}
		n = max(n, 1+bytes/chunk.MaxLength)
	} else if n <= spareChunks/2 {
		n = 0
	}
	if n <= 0 {
		return 0, 0, false
	}
	if p.failures > 1 {
		pause = backoff(p.failures - 2)
	}
	return min(n, maxAlloc), pause, false
}

func (p *pool) placeWaiting() {
	waiting := p.waiting
	p.waiting = nil
	for _, fr := range waiting {
		p.w.route(fr)
	}
}

func (p *pool) allocate(ctx context.Context, count int) error {
	w := p.w
	gen, asked := w.meta.SessionGen(), time.Now()
	avoid, full := w.health.avoided()
	chunks, err := w.meta.AllocChunks(ctx, p.want, count, avoid)
	if err != nil && len(avoid) > 0 && fserr.Errno(err) == syscall.EAGAIN {
		// Better one that failed a while ago than none: the metaserver knows which are up.
		chunks, err = w.meta.AllocChunks(ctx, p.want, count, nil)
	}
	if err != nil {
		return fmt.Errorf("allocate chunks: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followSession()
	if gen != w.session { // they went with the session, unless they are of the next one, which would keep them without ever using them
		for _, a := range chunks {
			w.seal(&pb.ChunkCommit{Chunk: a.Id, Seal: true}, w.session)
		}
		return nil
	}
	usable := 0
	for _, a := range chunks {
		c := newOpenChunk(p, a, gen)
		c.made = asked // what is known to have happened since may not have been considered
		c.crowded = slices.ContainsFunc(c.targets, func(t *target) bool { return slices.Contains(full, t.server) })
		w.chunks[c] = struct{}{}
		if !c.usable() {
			c.close()
			continue
		}
		usable++
		p.spare = append(p.spare, c)
	}
	if usable == 0 {
		return fserr.New(syscall.EAGAIN, "allocate chunks: %d came, none with enough servers", len(chunks))
	}
	p.placeWaiting()
	return nil
}

// failWaiting gives up what waits for a chunk: the cluster is full.
func (p *pool) failWaiting(err error) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	var published []*frame
	for _, fr := range p.waiting {
		if fr.published { // nobody would hear of it: it waits for room
			published = append(published, fr)
			continue
		}
		p.w.lost(fr, fserr.New(syscall.ENOSPC, "write inode %d: %v", fr.file.inode, err))
	}
	p.waiting = published
}

// loseWaiting gives up what waits for a chunk, but for what is published if that is to be kept.
func (p *pool) loseWaiting(err error, keep bool) {
	var published []*frame
	for _, fr := range p.waiting {
		if keep && fr.published {
			published = append(published, fr)
			continue
		}
		p.w.lost(fr, err)
	}
	p.waiting = published
}

// retire ends a pool that nothing was placed in for long and that has nothing left. It is made again when it is needed.
func (p *pool) retire() {
	p.retired = true
	delete(p.w.pools, p.want)
	wake(p.need)
}
