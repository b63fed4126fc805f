package data

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxExclusive   = 64      // open chunks that one file has to itself
	exclusiveAfter = 1 << 20 // bytes after which a file takes a chunk to itself
	// maxFullTries is how many chunks whose disks are full a frame is tried with that were placed on servers known to be full. The
	// metaserver says by itself when all are, as soon as it has heard of it; meanwhile it has no other servers to offer.
	maxFullTries = 8
	// A target that waits for its disk, and one without which too few would be left, get so many times more patience; less where
	// nobody waits for the disk, but frames may wait behind it, and the target is one too many.
	syncPatience  = 10
	bringPatience = 3
	lastPatience  = 5
	maxPatience   = 3 // how often patience doubles while no frame settles
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

	needSeal     chan struct{} // wakes the sealer
	needRelocate chan struct{} // wakes the relocator

	mu        sync.Mutex
	chunks    map[*openChunk]struct{} // all that are not over yet
	pools     map[chunk.Layout]*pool  // by the layout that is asked for
	exclusive int
	sealing   []sealing
	sealed    chan struct{} // closed when some of them were sealed
	session   uint64
	closed    bool
	leaving   map[chunk.ServerID]time.Time // servers that are being drained or dead, since when that is known
	unsynced  map[uint64]*frame            // the first of those of each inode that were committed before they were durable
	arrived   []*frame                     // on enough disks in their new places, which their extents do not know of
}

type sealing struct {
	chunk   *pb.ChunkCommit
	session uint64
}

func newWriter(s *Store) *writer {
	return &writer{s: s, meta: s.meta, log: s.log, health: s.health, session: s.meta.SessionGen(), chunks: map[*openChunk]struct{}{},
		leaving: map[chunk.ServerID]time.Time{}, pools: map[chunk.Layout]*pool{}, unsynced: map[uint64]*frame{}, needSeal: make(chan struct{}, 1), needRelocate: make(chan struct{}, 1)}
}

func (w *writer) start() {
	w.s.tasks.run(w.sealInBackground)
	w.s.tasks.run(w.relocateInBackground)
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
	case fr.gen.session != w.session && !fr.published:
		w.lost(fr, errSessionLost)
	default:
		p := w.poolFor(fr)
		if c := w.pick(p, fr); c != nil {
			c.place(fr)
			p.used = c.used
			return
		}
		p.wait(fr)
	}
}

// pick chooses the chunk for a frame: the file's own, or a shared one. nil: there is none yet.
func (w *writer) pick(p *pool, fr *frame) *openChunk {
	f := fr.file
	if c := f.own; c != nil {
		switch {
		case c.pool == p && c.fits(fr.n):
			return c
		case c.pool == p:
			c.close()
		case c.pool.policy() != p.policy(): // it was changed
			w.handBack(c)
		}
	}
	if f.own == nil && f.streamed > exclusiveAfter && w.exclusive < maxExclusive && !p.packed() {
		if c := p.takeOwn(fr.n); c != nil {
			c.owner, f.own = f, c
			w.exclusive++
			return c
		}
	}
	return p.share(fr.n)
}

// forget takes a chunk that is closing out of every list of open ones.
func (w *writer) forget(c *openChunk) {
	is := func(o *openChunk) bool { return o == c }
	c.pool.shared = slices.DeleteFunc(c.pool.shared, is)
	c.pool.spare = slices.DeleteFunc(c.pool.spare, is)
	w.disown(c)
}

func (w *writer) disown(c *openChunk) {
	if c.owner != nil {
		c.owner.own, c.owner = nil, nil
		w.exclusive--
	}
}

// handBack gives the chunk that a file had to itself to all.
func (w *writer) handBack(c *openChunk) {
	w.disown(c)
	c.pool.takeBack(c)
}

// release ends a file's writing.
func (w *writer) release(f *File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f.streamed = 0
	if f.own != nil {
		w.handBack(f.own)
	}
}

// settled is called when enough servers have received a frame.
func (w *writer) settled(fr *frame) {
	fr.chunk.pool.failures = 0
	w.s.metrics.written.Add(float64(fr.n))
	fr.notify()
}

// lost records that the bytes of a frame are gone for good. Its file says so once; if they were published, whoever waits for them
// to be on disk does.
func (w *writer) lost(fr *frame, err error) {
	fr.err = err
	fr.free()
	if fr.published {
		w.synced(fr)
	} else {
		fr.gen.fail(err)
	}
	fr.notify()
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
	if fr.published { // it is needed until it is safe
		return
	}
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
	kind := rpc.Kind(err)
	chunkOnly := kind == rpc.ChunkCorrupt || kind == rpc.ChunkNotFound
	if chunkOnly { // and the server may be well, unless that goes on
		w.health.late(t.server, time.Now(), 0)
	} else {
		w.health.failed(t.server, kind == rpc.DiskFull, err)
	}
	w.s.metrics.switches.Inc()
	w.log.Warn("a chunk server failed while it was written to; going on elsewhere", "server", t.server, "chunk", c.id, "live", live, "minimum", c.minimum, "error", err)
	if chunkOnly {
		return
	}
	for _, p := range w.pools {
		for _, o := range slices.Clone(p.spare) {
			if slices.ContainsFunc(o.targets, func(u *target) bool { return u.server == t.server }) {
				o.close()
			}
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
