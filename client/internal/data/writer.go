package data

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxShared      = 4       // open chunks that files share
	maxExclusive   = 64      // open chunks that one file has to itself
	exclusiveAfter = 1 << 20 // bytes after which a file takes a chunk to itself
	sharedBusy     = 1 << 20 // bytes under way to a shared chunk that make another worthwhile
	spareChunks    = 4       // chunks allocated ahead of need
	maxAlloc       = 64      // chunks asked for at once
	maxTargets     = 32      // of a chunk
	maxUnsyncable  = 1 << 16 // inodes remembered because published bytes of them may be on no disk
	maxFullTries   = 4       // chunks with full disks before a frame is given up with ENOSPC
	// A target that waits for its disk, and one without which too few would be left, get so many times more patience.
	syncPatience = 10
	lastPatience = 5
)

// writer places frames in chunks and sees to it that enough servers hold them. All of its state, that of chunks, targets
// and frames included, is under one lock, which is never held while anything is sent, read or computed.
//
// Lock order: File.mu, then writer.mu.
type writer struct {
	s      *Store
	meta   Meta
	log    *slog.Logger
	health *health

	needChunks, needSeal chan struct{} // wake the allocator and the sealer

	mu        sync.Mutex
	chunks    map[*openChunk]struct{} // all that are not over yet
	shared    []*openChunk
	spare     []*openChunk
	exclusive int
	waiting   []*frame // for a chunk
	sealing   []sealing
	sealed    chan struct{} // closed when some of them were sealed
	session   uint64
	keep      int       // how many spare chunks to have
	used      time.Time // when a frame was last placed
	failures  int       // chunks lost since a frame last settled
	closed    bool
	// unsyncable are inodes of which published bytes may be on no disk, with the error for their next sync.
	unsyncable map[uint64]error
}

type sealing struct {
	chunk   *pb.ChunkCommit
	session uint64
}

func newWriter(s *Store) *writer {
	return &writer{s: s, meta: s.meta, log: s.log, health: s.health, session: s.meta.SessionGen(), chunks: map[*openChunk]struct{}{}, unsyncable: map[uint64]error{},
		needChunks: make(chan struct{}, 1), needSeal: make(chan struct{}, 1)}
}

func (w *writer) start() {
	w.s.tasks.run(w.allocateAhead)
	w.s.tasks.run(w.sealInBackground)
	w.s.tasks.run(w.monitor)
}

func wake(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// send has a frame brought to a chunk. It does not block.
func (w *writer) send(fr *frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followSession()
	fr.file.streamed += uint64(fr.n)
	w.route(fr)
}

// route places a frame, or lets it wait for a chunk.
func (w *writer) route(fr *frame) {
	switch {
	case fr.gone:
		fr.free()
	case fr.gen.session != w.session:
		w.lost(fr, errSessionLost)
	default:
		if c := w.pick(fr); c != nil {
			w.used = c.used
			c.place(fr)
			return
		}
		w.waiting = append(w.waiting, fr)
		wake(w.needChunks)
	}
}

// pick chooses the chunk for a frame: the file's own, or a shared one. nil: there is none yet.
func (w *writer) pick(fr *frame) *openChunk {
	f := fr.file
	if c := f.own; c != nil {
		if c.fits(fr.n) {
			return c
		}
		c.close()
	}
	if f.streamed > exclusiveAfter && w.exclusive < maxExclusive {
		if c := w.takeOwn(fr.n); c != nil {
			c.owner, f.own = f, c
			w.exclusive++
			return c
		}
	}
	var best, fullest *openChunk
	for _, c := range w.shared {
		if c.fits(fr.n) && (best == nil || c.queued() < best.queued()) {
			best = c
		}
		if fullest == nil || c.length > fullest.length {
			fullest = c
		}
	}
	if best != nil && (best.queued() < sharedBusy || len(w.shared) >= maxShared) {
		return best
	}
	if best == nil && len(w.shared) >= maxShared {
		fullest.close()
	}
	if c := w.takeSpare(); c != nil {
		w.shared = append(w.shared, c)
		return c
	}
	return best
}

// takeOwn returns a chunk for one file alone: a shared one that nothing is under way to, so that chunks get filled, or a
// spare one.
func (w *writer) takeOwn(n int) *openChunk {
	for i, c := range w.shared {
		if len(c.queue) == 0 && c.fits(n) {
			w.shared = slices.Delete(w.shared, i, i+1)
			return c
		}
	}
	return w.takeSpare()
}

// takeSpare returns a chunk that was allocated ahead, none of whose targets failed since.
func (w *writer) takeSpare() *openChunk {
	w.keep = spareChunks
	for len(w.spare) > 0 {
		c := w.spare[0]
		if slices.ContainsFunc(c.targets, func(t *target) bool { return w.health.failedSince(t.server, c.made) }) {
			c.close() // takes it off the list
			continue
		}
		w.spare = w.spare[1:]
		if len(w.spare) < spareChunks/2 {
			wake(w.needChunks)
		}
		return c
	}
	wake(w.needChunks)
	return nil
}

// forget takes a chunk that is closing out of every list of open ones.
func (w *writer) forget(c *openChunk) {
	is := func(o *openChunk) bool { return o == c }
	w.shared = slices.DeleteFunc(w.shared, is)
	w.spare = slices.DeleteFunc(w.spare, is)
	w.disown(c)
}

func (w *writer) disown(c *openChunk) {
	if c.owner != nil {
		c.owner.own, c.owner = nil, nil
		w.exclusive--
	}
}

// release gives the chunk that a file had to itself to all.
func (w *writer) release(f *File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f.streamed = 0
	c := f.own
	if c == nil {
		return
	}
	w.disown(c)
	if len(w.shared) >= maxShared {
		fullest := slices.MaxFunc(w.shared, func(a, b *openChunk) int { return int(a.length) - int(b.length) })
		if c.length >= fullest.length {
			c.close()
			return
		}
		fullest.close()
	}
	w.shared = append(w.shared, c)
}

// settled is called when enough servers hold a frame.
func (w *writer) settled(fr *frame) {
	w.failures = 0
	w.s.metrics.written.Add(float64(fr.n))
	fr.free()
	fr.notify()
}

// lost records that the bytes of a frame are gone for good. Its file says so once.
func (w *writer) lost(fr *frame, err error) {
	fr.err = err
	fr.free()
	fr.gen.fail(err)
	fr.notify()
}

// cannotSync records that published bytes of an inode may be on no disk. The next sync of the inode says so; of very many
// inodes that nobody syncs, some are forgotten.
func (w *writer) cannotSync(inode uint64, c *openChunk) {
	if len(w.unsyncable) >= maxUnsyncable {
		for other := range w.unsyncable {
			delete(w.unsyncable, other)
			break
		}
	}
	w.unsyncable[inode] = errUnsyncable(inode, c)
}

// discard drops frames that nobody wants any more.
func (w *writer) discard(frames []*frame) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fr := range frames {
		w.forgetFrame(fr)
	}
}

func (w *writer) forgetFrame(fr *frame) {
	fr.gone, fr.pinned = true, false
	fr.notify()
	queued := fr.chunk != nil && !fr.settled && fr.err == nil
	if !queued { // else it is sent all the same: the chunk has no holes
		fr.free()
	}
	if fr.chunk != nil && !fr.rescued {
		fr.chunk.release(fr)
	}
}

// targetFailed is called when a target was dropped.
func (w *writer) targetFailed(c *openChunk, t *target, live int, err error) {
	if w.s.ctx.Err() != nil {
		return
	}
	full := rpc.Kind(err) == rpc.DiskFull
	w.health.failed(t.server, full, err)
	w.s.metrics.switches.Inc()
	w.log.Warn("a chunk server failed while it was written to; going on elsewhere", "server", t.server, "chunk", c.id, "live", live, "minimum", c.minimum, "error", err)
	for _, o := range slices.Clone(w.spare) {
		if slices.ContainsFunc(o.targets, func(u *target) bool { return u.server == t.server }) {
			o.close()
		}
	}
}

// reroute moves frames out of a lost chunk: those in memory are sent again, the others are read back first.
func (w *writer) reroute(c *openChunk, resend, reread []*frame) {
	if len(resend)+len(reread) > 0 {
		w.failures++
	}
	slices.SortFunc(resend, func(a, b *frame) int { return int(a.off) - int(b.off) })
	full := c.diskFull()
	for _, fr := range resend {
		fr.chunk, fr.off, fr.settled = nil, 0, false
		w.s.metrics.resent.Inc()
		if full {
			if fr.full++; fr.full >= maxFullTries {
				w.lost(fr, fserr.New(syscall.ENOSPC, "write inode %d", fr.file.inode))
				continue
			}
		}
		if fr.gone {
			fr.free()
			continue
		}
		w.waiting = append(w.waiting, fr) // the allocator places it, after a pause if chunk after chunk is lost
	}
	w.keep = spareChunks
	wake(w.needChunks)
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
			w.waiting = append(w.waiting, fr)
			wake(w.needChunks)
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
		from := location{chunk: c.id, off: fr.off, n: fr.n, length: fr.end(), servers: c.readers(fr.end()), tries: attempt}
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

// dial opens the stream to a target.
func (w *writer) dial(ctx context.Context, t *target) (rpc.AppendClient, error) {
	address, _, err := w.meta.Server(ctx, t.server)
	if err != nil {
		return rpc.AppendClient{}, err
	}
	conn, err := w.s.cfg.Pool.Get(address)
	if err != nil {
		return rpc.AppendClient{}, err
	}
	return rpc.OpenAppend(ctx, conn)
}

// allocateAhead gets chunks when some are needed. While it fails, frames wait; it never gives up.
func (w *writer) allocateAhead() {
	ctx := w.s.ctx
	for attempt := 0; ctx.Err() == nil; {
		count, pause := w.wanted()
		if count == 0 {
			select {
			case <-w.needChunks:
			case <-ctx.Done():
			}
			continue
		}
		if pause > 0 && sleep(ctx, pause) != nil {
			return
		}
		err := w.allocate(ctx, count)
		if err == nil {
			attempt = 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if fserr.Errno(err) == syscall.ENOSPC {
			w.failWaiting(err)
		}
		if attempt == 0 {
			w.log.Warn("no chunks to write to; waiting for servers", "error", err)
		}
		if sleep(ctx, backoff(attempt)) != nil {
			return
		}
		attempt++
	}
}

// wanted returns how many chunks to allocate, and how long to wait before, which is longer the more were lost in a row. It
// places what waits if it can.
func (w *writer) wanted() (int, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followSession()
	if w.closed && len(w.waiting) == 0 {
		return 0, 0
	}
	if w.failures == 0 || len(w.spare) > 0 {
		w.placeWaiting()
	}
	n := w.keep - len(w.spare)
	if len(w.waiting) > 0 {
		var bytes int
		for _, fr := range w.waiting {
			bytes += fr.n
		}
		n = max(n, 1+bytes/chunk.MaxLength)
	} else if n <= spareChunks/2 {
		n = 0
	}
	if n <= 0 {
		return 0, 0
	}
	var pause time.Duration
	if w.failures > 1 {
		pause = backoff(w.failures - 2)
	}
	return min(n, maxAlloc), pause
}

func (w *writer) placeWaiting() {
	waiting := w.waiting
	w.waiting = nil
	for _, fr := range waiting {
		w.route(fr)
	}
}

func (w *writer) allocate(ctx context.Context, count int) error {
	gen := w.meta.SessionGen()
	avoid := w.health.avoided()
	chunks, err := w.meta.AllocChunks(ctx, chunk.Layout{}, count, avoid)
	if err != nil && len(avoid) > 0 && fserr.Errno(err) == syscall.EAGAIN {
		// Better one that failed a while ago than none: the metaserver knows which are up.
		chunks, err = w.meta.AllocChunks(ctx, chunk.Layout{}, count, nil)
	}
	if err != nil {
		return fmt.Errorf("allocate chunks: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followSession()
	if gen != w.session {
		return nil // they went with the session
	}
	usable := 0
	for _, a := range chunks {
		c := newOpenChunk(w, a, gen)
		w.chunks[c] = struct{}{}
		if len(c.targets) < c.minimum || len(c.targets) > maxTargets {
			c.close()
			continue
		}
		usable++
		w.spare = append(w.spare, c)
	}
	if usable == 0 {
		return fserr.New(syscall.EAGAIN, "allocate chunks: %d came, none with enough servers", len(chunks))
	}
	w.placeWaiting()
	return nil
}

// failWaiting gives up what waits for a chunk: the cluster is full.
func (w *writer) failWaiting(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, fr := range w.waiting {
		w.lost(fr, fserr.New(syscall.ENOSPC, "write inode %d: %v", fr.file.inode, err))
	}
	w.waiting = nil
}
