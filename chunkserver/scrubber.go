package chunkserver

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
)

const (
	// scrubRest is how long after the start of one round the next one of the endless scrub begins at the earliest.
	scrubRest = time.Hour
	// scrubSeek is what looking for a file costs of the rate, in bytes: about what a disk could read in that time.
	scrubSeek = 256 << 10
	// scrubAgain is the pause when a chunk could not be checked for want of descriptors or memory. It is checked later in the
	// round.
	scrubAgain = 200 * time.Millisecond
	// maxChecks bounds the chunks of a disk that wait to be checked. The metaserver repeats what is dropped.
	maxChecks = 4096
)

// scrubber reads all that a disk holds, again and again, and checks it.
type scrubber struct {
	s      *Server
	all    *scrubs
	disk   *disk.Disk
	log    *slog.Logger
	always bool          // also when nobody asks
	rest   time.Duration // see scrubRest
	wake   chan struct{} // 1: something was asked for

	// of the scrubber's goroutine
	round  *round
	began  time.Time // when the last round did that was not asked for
	passed uint64    // the last pass that was gone through

	mu        sync.Mutex
	checks    []chunk.ID
	checking  map[chunk.ID]bool
	wanted    uint64             // the newest pass asked for
	asked     scrubProgress      // of that pass
	endless   scrubProgress      // of the round under way that was not asked for
	lastFull  time.Time          // when all was last gone through
	interrupt context.CancelFunc // ends the check under way; nil if there is none
	patient   bool               // that one can be put off for anything
}

// scrubProgress is how far a round is.
type scrubProgress struct {
	pass        uint64
	done, total uint64 // bytes
	found       uint64
	finished    bool
}

// round is one walk through all chunks of the disk.
type round struct {
	pass   uint64 // 0: nobody asked for it
	chunks []disk.Report
	began  time.Time
}

// request asks for a full pass.
func (w *scrubber) request(pass uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if pass <= w.wanted {
		return
	}
	w.wanted, w.asked = pass, scrubProgress{pass: pass}
	if w.interrupt != nil {
		w.interrupt()
	}
	notify(w.wake)
}

// checkSoon asks for the check of one chunk.
func (w *scrubber) checkSoon(id chunk.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.checking[id] || len(w.checks) >= maxChecks {
		return
	}
	w.checking[id] = true
	w.checks = append(w.checks, id)
	if w.interrupt != nil && w.patient {
		w.interrupt()
	}
	notify(w.wake)
}

// progress is that of the pass that was asked for, if one was, or of the round under way.
func (w *scrubber) progress() scrubProgress {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wanted > 0 {
		return w.asked
	}
	return w.endless
}

// last is when all of the disk was last gone through, and found whole or bad.
func (w *scrubber) last() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lastFull
}

// run scrubs until ctx ends.
func (w *scrubber) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if id, ok := w.nextCheck(); ok {
			w.s.checkNow(ctx, w.disk, id)
			w.checked(id)
			continue
		}
		if w.mayBegin() {
			w.begin()
		}
		if w.round == nil {
			w.pause(ctx)
			continue
		}
		w.step(ctx)
	}
	return nil
}

func (w *scrubber) nextCheck() (chunk.ID, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.checks) == 0 {
		return 0, false
	}
	id := w.checks[0]
	w.checks = w.checks[1:]
	return id, true
}

func (w *scrubber) checked(id chunk.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.checking, id)
}

// mayBegin says whether a new round is due, be it in place of one that is under way.
func (w *scrubber) mayBegin() bool {
	w.mu.Lock()
	wanted := w.wanted
	w.mu.Unlock()
	if wanted > w.passed && (w.round == nil || w.round.pass < wanted) {
		return true
	}
	return w.round == nil && w.always && time.Since(w.began) >= w.rest
}

// begin starts a round: the pass that is asked for, or one of the endless scrub. That one starts anywhere, so that all chunks
// have their turn however often the server is started.
func (w *scrubber) begin() {
	now := time.Now()
	r := &round{began: now}
	if w.disk.Err() == nil { // else nothing that it holds counts any more
		r.chunks = w.disk.List()
	}
	slices.SortFunc(r.chunks, func(a, b disk.Report) int { return cmp.Compare(a.ID, b.ID) })
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wanted > w.passed {
		r.pass = w.wanted
	} else if n := len(r.chunks); n > 0 {
		at := rand.IntN(n)
		r.chunks = slices.Concat(r.chunks[at:], r.chunks[:at])
	}
	w.began = now
	w.round = r
	p := w.progressOf(r)
	*p = scrubProgress{pass: r.pass}
	for _, c := range r.chunks {
		p.total += c.Length
	}
}

// progressOf returns where the progress of a round is kept; w.mu is held.
func (w *scrubber) progressOf(r *round) *scrubProgress {
	if r.pass == 0 {
		return &w.endless
	}
	return &w.asked
}

// pause waits until something is due.
func (w *scrubber) pause(ctx context.Context) {
	var due <-chan time.Time
	if w.always {
		t := time.NewTimer(w.rest - time.Since(w.began))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-due:
	case <-w.wake:
	case <-ctx.Done():
	}
}

// step checks the next chunk of the round, or ends it.
func (w *scrubber) step(ctx context.Context) {
	r := w.round
	if len(r.chunks) == 0 {
		w.end(r)
		return
	}
	c := r.chunks[0]
	vctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !w.enter(r, cancel) {
		return // something more urgent came meanwhile
	}
	var err error
	known := w.known(c)
	if !known {
		err = w.verify(vctx, r, c.ID)
	}
	again := err != nil && !about(err)
	if again {
		wait(vctx, scrubAgain)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.interrupt = nil
	if err != nil && vctx.Err() != nil {
		return // and will be checked another time
	}
	r.chunks = r.chunks[1:]
	if again {
		r.chunks = append(r.chunks, c)
		return
	}
	p := w.progressOf(r)
	if p.pass != r.pass {
		return // a newer one was asked for
	}
	p.done += c.Length
	if known && !w.s.store.good(c.ID) { // else it was made anew on another disk
		p.found++
	}
	if errors.Is(err, disk.ErrCorrupt) {
		p.found++
		w.s.metrics.scrubBad.Inc()
	}
}

// known reports a chunk again that was found damaged before and was not made anew since, without reading it.
func (w *scrubber) known(c disk.Report) bool {
	if !c.Bad {
		return false
	}
	h, ok := w.disk.Held(c.ID)
	if !ok || !h.Bad {
		return false
	}
	w.s.foundBad(c.ID, nil)
	return true
}

// about tells whether an error of Verify says something about the chunk, rather than what the process lacked to check it.
func about(err error) bool {
	return errors.Is(err, disk.ErrCorrupt) || errors.Is(err, disk.ErrNotFound) || errors.Is(err, disk.ErrWriting)
}

// enter makes the check of a chunk one that can be interrupted, unless there is a reason to do so already.
func (w *scrubber) enter(r *round, cancel context.CancelFunc) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wanted > max(w.passed, r.pass) || len(w.checks) > 0 && r.pass == 0 {
		return false
	}
	w.interrupt, w.patient = cancel, r.pass == 0
	return true
}

func (w *scrubber) verify(ctx context.Context, r *round, id chunk.ID) error {
	throttle := w.all.fast
	if r.pass == 0 {
		throttle = w.all.slow
		if err := throttle.wait(ctx, scrubSeek); err != nil {
			return err
		}
	}
	err := w.disk.Verify(ctx, id, func(ctx context.Context, n int) error {
		err := throttle.wait(ctx, n)
		if err == nil {
			w.s.metrics.scrubBytes.Add(float64(n))
		}
		return err
	})
	if err != nil && !about(err) && ctx.Err() == nil {
		w.log.Warn("a chunk could not be scrubbed; that is tried again", "chunk", id, "err", err)
	}
	return err
}

// end notes that the round is over.
func (w *scrubber) end(r *round) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.round = nil
	w.lastFull = time.Now()
	p := w.progressOf(r)
	if p.pass == r.pass {
		p.finished = true
	}
	w.passed = max(w.passed, r.pass)
	level := slog.LevelDebug
	if r.pass > 0 {
		level = slog.LevelInfo
	}
	if p.found > 0 {
		level = slog.LevelWarn
	}
	w.log.Log(context.Background(), level, "scrubbed all chunks of a disk", "pass", r.pass, "bytes", p.done, "bad", p.found,
		"took", time.Since(r.began).Round(time.Millisecond))
}
