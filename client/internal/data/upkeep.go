package data

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// maxSeals bounds how many chunks are sealed by one command.
const maxSeals = 256

var errSessionLost = fserr.New(syscall.EIO, "the session with the cluster was lost before written data was published")

// seal has metadata told that a chunk is given up.
func (w *writer) seal(c *pb.ChunkCommit, session uint64) {
	if session != w.session {
		return
	}
	w.sealing = append(w.sealing, sealing{c, session})
	wake(w.needSeal)
}

// sealInBackground tells metadata of the chunks that were given up.
func (w *writer) sealInBackground() {
	ctx := w.s.ctx
	for attempt := 0; ctx.Err() == nil; {
		if done, err := w.sealSome(ctx); err != nil {
			if sleep(ctx, backoff(attempt)) != nil {
				return
			}
			attempt++
			continue
		} else if !done {
			attempt = 0
			continue
		}
		attempt = 0
		select {
		case <-w.needSeal:
		case <-ctx.Done():
		}
	}
}

// sealSome seals one batch; done: there is nothing left.
func (w *writer) sealSome(ctx context.Context) (done bool, err error) {
	w.mu.Lock()
	w.followSession()
	n := min(len(w.sealing), maxSeals)
	batch := slices.Clone(w.sealing[:n])
	session := w.session
	w.mu.Unlock()
	if n == 0 {
		return true, nil
	}
	chunks := make([]*pb.ChunkCommit, n)
	for i, s := range batch {
		chunks[i] = s.chunk
	}
	err = w.meta.SealChunks(ctx, chunks)
	if again(err) {
		return false, err
	}
	if err != nil && n > 1 { // one that is refused keeps the others back
		for i, c := range chunks {
			if err = w.meta.SealChunks(ctx, chunks[i:i+1]); again(err) {
				return false, err
			} else if err != nil {
				w.refused(c, err)
			}
		}
	} else if err != nil {
		w.refused(chunks[0], err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.session == session {
		w.sealing = slices.Delete(w.sealing, 0, n)
	}
	if w.sealed != nil {
		close(w.sealed)
		w.sealed = nil
	}
	return len(w.sealing) == 0, nil
}

// again tells whether what failed with err is to be tried again.
func again(err error) bool {
	errno := refusal(err)
	return err != nil && (errno == 0 || errno == syscall.EAGAIN)
}

// refused says that a chunk was not sealed: repair has done so already, or the session that it is of has ended. Nothing is left to do
// for this client.
func (w *writer) refused(c *pb.ChunkCommit, err error) {
	w.log.Warn("a chunk could not be given up", "chunk", chunk.ID(c.Chunk), "error", err)
}

// refusal returns the errno with which the metaserver refused, 0 for every other error.
func refusal(err error) syscall.Errno {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return 0
}

// monitor gives up targets that stall, chunks that idle and what an ended session left.
func (w *writer) monitor() {
	period := min(max(min(w.s.cfg.StallTimeout/8, w.s.cfg.LagTimeout/4), 5*time.Millisecond), 250*time.Millisecond)
	t := time.NewTicker(period)
	defer t.Stop()
	for {
		select {
		case <-w.s.ctx.Done():
			w.abandon()
			return
		case <-t.C:
		}
		drained, dead := w.meta.Leaving()
		w.mu.Lock()
		w.followSession()
		now := time.Now()
		w.passLaggards(now)
		w.dropStalled(now)
		w.bringOld(now)
		w.closeIdle(now)
		w.leave(drained, dead, now)
		w.mu.Unlock()
	}
}

func (w *writer) dropStalled(now time.Time) {
	type stalled struct {
		t     *target
		since time.Duration
	}
	var drop []stalled
	for c := range w.chunks {
		live, _, _ := c.holders()
		// When chunk after chunk is lost it may as well be this machine that is slow.
		timeout := w.s.cfg.StallTimeout << min(c.pool.failures, maxPatience)
		for _, t := range c.targets {
			limit := timeout
			switch {
			case t.syncing() && (live <= c.minimum || c.closing || c.wanted > t.durable):
				limit *= syncPatience
			case t.syncing():
				limit *= bringPatience
			case live <= c.minimum:
				limit *= lastPatience
			}
			if d := t.stalled(now); d > limit {
				drop = append(drop, stalled{t, d})
				if !t.late {
					live--
				}
			}
		}
	}
	for _, d := range drop {
		d.t.c.drop(d.t, fmt.Errorf("chunk %v: server %d acknowledged nothing for %v", d.t.c.id, d.t.server, d.since.Round(time.Millisecond)))
	}
}

// closeIdle gives up chunks that nothing was written to for long, and the spare ones of pools when nothing at all was.
func (w *writer) closeIdle(now time.Time) {
	idle := w.s.cfg.IdleTimeout
	for _, p := range w.pools {
		if now.Sub(p.used) > idle && len(p.waiting) == 0 {
			p.keep = 0
		}
	}
	var over []*openChunk
	busy := map[*pool]bool{}
	for c := range w.chunks {
		busy[c.pool] = true
		if c.closing || len(c.queue) > 0 || now.Sub(c.used) <= idle {
			continue
		}
		if c.pool.keep > 0 && slices.Contains(c.pool.spare, c) {
			continue
		}
		over = append(over, c)
	}
	for _, c := range over {
		c.close()
	}
	for _, p := range w.pools {
		if p.keep == 0 && len(p.waiting) == 0 && !busy[p] && now.Sub(p.used) > idle {
			p.retire()
		}
	}
}

// leave gives up the chunks on servers that are being drained or dead: repair waits for that. What is not published yet moves while it
// can be read, where without these servers too few would have it: a server that was drained deletes what it has. Whether a server is
// dead that this client writes to at the moment it finds out better by itself.
func (w *writer) leave(drained, dead []chunk.ServerID, now time.Time) {
	maps.DeleteFunc(w.leaving, func(id chunk.ServerID, _ time.Time) bool {
		return !slices.Contains(drained, id) && !slices.Contains(dead, id)
	})
	for _, id := range slices.Concat(drained, dead) {
		if _, known := w.leaving[id]; !known {
			w.leaving[id] = now
		}
	}
	if len(w.leaving) == 0 {
		return
	}
	for c := range w.chunks {
		stay, here := 0, 0
		for _, t := range c.targets {
			// What was placed there since is placed by who knows better.
			since, leaves := w.leaving[t.server]
			leaves = leaves && !c.made.After(since)
			if writes := t.live && t.started && !t.finished; leaves && (!writes || slices.Contains(drained, t.server)) {
				here++
			} else if t.live && !t.late {
				stay++
			}
		}
		if here == 0 {
			continue
		}
		c.close()
		if stay < c.minimum && !c.lost && c.unpublished() {
			c.lose()
		}
	}
}

func (c *openChunk) unpublished() bool {
	for fr := range c.held {
		if !fr.published {
			return true
		}
	}
	return false
}

// followSession drops everything that belongs to a session that was lost. The metaserver has sealed its chunks, so that
// what was not committed of them can never be published.
func (w *writer) followSession() {
	gen := w.meta.SessionGen()
	if gen == w.session {
		return
	}
	w.log.Warn("the session with the cluster was lost; data that was not published yet is lost with it")
	w.session = gen
	for _, c := range slices.Collect(maps.Keys(w.chunks)) {
		w.expire(c)
	}
	for _, p := range w.pools {
		p.loseWaiting(errSessionLost, true)
		p.spare, p.failures = nil, 0
	}
	w.sealing = slices.DeleteFunc(w.sealing, func(s sealing) bool { return !s.chunk.Cut })
}

// expire drops what is not published of a chunk whose session has ended. What is published stays, and has yet to be on the servers'
// disks; what was to be moved here goes elsewhere.
func (w *writer) expire(c *openChunk) {
	c.sealed, c.closing = true, true
	c.clearQueue()
	w.forget(c)
	var resend []*frame
	for fr := range c.held {
		switch {
		case fr.chunk != c, fr.pinned: // it moves already; the commit under way decides
		case !fr.published:
			w.lost(fr, errSessionLost)
			delete(c.held, fr)
		case fr.home != nil:
			delete(c.held, fr)
			resend = append(resend, fr)
		}
	}
	w.reroute(c, resend, nil)
	c.kept.filter(c)
	if len(c.held) == 0 && c.commits == 0 {
		w.kill(c, errSessionLost)
		return
	}
	now := time.Now()
	for _, t := range c.targets {
		t.kick(now)
	}
	c.notify()
	c.retire()
}

// kill ends everything about a chunk at once.
func (w *writer) kill(c *openChunk, err error) {
	c.sealed, c.lost, c.closing = true, true, true
	c.kept = retained{}
	c.clearQueue()
	w.forget(c)
	for fr := range c.held {
		if fr.chunk == c && fr.err == nil {
			w.lost(fr, err)
		}
	}
	clear(c.held)
	for _, t := range c.targets {
		t.live = false
		if t.cancel != nil {
			t.cancel()
		}
		t.cond.signal()
	}
	c.leave()
	c.notify()
}

// shutdown gives all chunks up and waits until metadata knows, or ctx ends.
func (w *writer) shutdown(ctx context.Context) {
	w.mu.Lock()
	w.closed = true
	for _, p := range w.pools {
		p.keep = 0
	}
	for _, c := range slices.Collect(maps.Keys(w.chunks)) {
		c.wanted = c.length
		c.close()
		c.retire() // if it waited for late targets: nobody does any more
	}
	w.mu.Unlock()
	for {
		busy := w.unfinished()
		if busy == nil {
			return
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return
		}
	}
}

// unfinished returns a channel that is closed when there is progress with giving chunks up, nil when all are.
func (w *writer) unfinished() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.chunks {
		return c.wait()
	}
	if len(w.sealing) == 0 {
		return nil
	}
	if w.sealed == nil {
		w.sealed = make(chan struct{})
	}
	return w.sealed
}

// abandon is the end: what is not published by now is lost.
func (w *writer) abandon() {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := fserr.New(syscall.EIO, "the file system was closed before written data was published, or on disk")
	if n := len(w.unsynced); n > 0 {
		w.log.Error("closed before all published data was on the disks of enough servers: it is lost if they lose power now", "files", n)
	}
	for _, c := range slices.Collect(maps.Keys(w.chunks)) {
		w.kill(c, err)
	}
	for _, p := range w.pools {
		p.loseWaiting(err, false)
	}
}
