package data

import (
	"context"
	"slices"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// The window of a target: how much may be sent to it without being acknowledged.
const (
	windowBytes  = 8 << 20
	windowFrames = 16
	// chunkTail is how little room makes a chunk full, in bytes.
	chunkTail = 64 << 10
	// stopgap is how long chunks of another layout than was asked for are placed in.
	stopgap = time.Minute
)

// openChunk is a chunk that this client writes. writer.mu guards it.
//
// It is open until it is full, idle or a target failed; then it is closing: what was placed in it still goes to the live
// targets, nothing more is placed. If fewer targets than the minimum live it is lost: what is not committed of it, or not on
// disk, moves to other chunks. Once all that is committed of it is on disk, there or elsewhere, metadata is told that it is sealed.
//
// All lengths and offsets are those of the chunk's bytes. Only what is said to a server counts the bytes of its shard.
type openChunk struct {
	w       *writer
	pool    *pool
	id      chunk.ID
	layout  chunk.Layout
	minimum int // targets that must hold bytes before they count
	session uint64
	targets []*target

	queue []*frame            // not settled, in chunk order
	kept  retained            // settled, but not durable
	base  int                 // number of the first of the queue, counted from the chunk's first frame
	held  map[*frame]struct{} // that were placed here, or committed here, and are not committed and safe
	owner *File               // it alone places frames here

	length    uint64 // bytes placed
	committed uint64 // bytes named in commits so far, those under way included
	recorded  []uint32
	firm      uint64 // bytes that were on enough disks at some time
	commits   int    // under way
	closing   bool
	lost      bool
	moved     bool // frames that were committed here had to leave
	unsure    bool // it is not known what extents there are of it
	sealed    bool // metadata was told, or need not be
	crowded   bool // it was placed on servers that were known to be full, for want of others
	syncEnd   uint64
	wanted    uint64 // so much of syncEnd somebody waits for
	awaited   uint64 // so much somebody waits for to be received
	made      time.Time
	used      time.Time
	changed   chan struct{}
}

// target is one server that a chunk is written to, and the stream to it.
type target struct {
	c      *openChunk
	server chunk.ServerID
	shard  int
	cond   condition
	cancel context.CancelFunc

	live     bool
	started  bool
	finished bool // sealed, all on its disk, the stream has ended
	err      error
	next     int    // number of the frame to send next
	acked    int    // number of the first frame that is not acknowledged
	sent     uint64 // bytes
	received uint64 // bytes acknowledged
	durable  uint64 // bytes acknowledged to be on disk
	syncSent uint64 // end of the last append that asked for the disk
	sealSent bool
	cutting  bool      // its shard of a frame is being made
	since    time.Time // when it last made progress or got something to do
	behind   time.Time // since when it has to reach the goal, which enough others have reached; zero if it has
	goal     mark
	late     bool // nobody waits for it any more
}

func newOpenChunk(p *pool, a *pb.AllocatedChunk, session uint64) *openChunk {
	now := time.Now()
	c := &openChunk{w: p.w, pool: p, id: chunk.ID(a.Id), layout: chunk.LayoutOf(a.Layout), session: session,
		held: map[*frame]struct{}{}, made: now, used: now}
	c.minimum = max(1, c.layout.Min)
	for shard, id := range a.Servers {
		if id == 0 { // there were not enough servers
			continue
		}
		t := &target{c: c, server: chunk.ServerID(id), shard: shard, live: true}
		t.cond.init(&p.w.mu)
		c.targets = append(c.targets, t)
	}
	return c
}

// usable tells whether the metaserver gave something that can be written to.
func (c *openChunk) usable() bool {
	return c.layout.Check(true) == nil && len(c.targets) >= c.minimum && c.targets[len(c.targets)-1].shard < c.layout.Width()
}

// wait returns a channel that is closed at the chunk's next change.
func (c *openChunk) wait() <-chan struct{} {
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return c.changed
}

func (c *openChunk) notify() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// fits tells whether n bytes more may be placed.
func (c *openChunk) fits(n int) bool {
	return !c.closing && !c.outlived() && c.length+uint64(c.layout.Padded(n)) <= chunk.MaxLength && c.base+len(c.queue) < chunk.MaxFrames
}

// outlived tells whether the chunk is of another layout than its files ought to have, and so old that there may be enough
// servers for that one now.
func (c *openChunk) outlived() bool {
	want := c.pool.want
	return !want.IsZero() && (want.Data != c.layout.Data || want.Parity != c.layout.Parity) && time.Since(c.made) > stopgap
}

// short tells whether the chunk lacks servers from the beginning.
func (c *openChunk) short() bool { return len(c.targets) < c.layout.Width() }

// queued is how many bytes are not settled.
func (c *openChunk) queued() uint64 {
	if len(c.queue) == 0 {
		return 0
	}
	return c.length - c.queue[0].off
}

// place puts a frame at the end of the chunk and has it sent.
func (c *openChunk) place(fr *frame) {
	now := time.Now()
	fr.chunk, fr.off, fr.room, fr.settled, fr.durable = c, c.length, c.layout.Padded(fr.n), false, false
	if c.layout.Coded() {
		fr.cut = newStripe(fr, c.layout)
	}
	c.length += uint64(fr.room)
	c.queue = append(c.queue, fr)
	c.held[fr] = struct{}{}
	c.used = now
	if fr.awaited {
		c.awaited = fr.end()
	}
	if fr.sync {
		c.syncEnd, c.wanted = max(c.syncEnd, fr.end()), fr.end()
	}
	for _, t := range c.targets {
		t.start()
		t.kick(now)
	}
	if c.length+uint64(max(chunkTail, c.layout.Row())) > chunk.MaxLength {
		c.close()
	}
}

// sync has all bytes below end brought to the targets' disks, for which somebody waits.
func (c *openChunk) sync(end uint64) {
	c.wanted = max(c.wanted, end)
	c.syncTo(end)
}

func (c *openChunk) syncTo(end uint64) {
	if end <= c.syncEnd {
		return
	}
	c.syncEnd = end
	now := time.Now()
	for _, t := range c.targets {
		t.kick(now)
	}
}

// close ends placing. The targets are told to seal the chunk, which brings all of it to their disks.
func (c *openChunk) close() {
	if c.closing {
		return
	}
	c.closing = true
	c.w.forget(c)
	now := time.Now()
	for _, t := range c.targets {
		t.kick(now)
	}
	c.retire()
}

// holders returns how many live targets there are that are not late, and what all of these have received and have on disk.
func (c *openChunk) holders() (live int, received, durable uint64) {
	received, durable = c.length, c.length
	for _, t := range c.targets {
		if t.live && !t.late {
			live++
			received, durable = min(received, t.received), min(durable, t.durable)
		}
	}
	return live, received, durable
}

// servers returns who is to be named as holding their shard of the chunk below length.
func (c *openChunk) servers(length uint64) []uint32 {
	var live, all []uint32
	for _, t := range c.targets {
		if t.received < length {
			continue
		}
		all = append(all, uint32(t.server))
		if t.live {
			live = append(live, uint32(t.server))
		}
	}
	switch {
	case len(live) >= c.minimum:
		return live
	case len(all) > 0: // they failed, but they acknowledged it: better known than not, a code may need each of them
		return all
	}
	return c.recorded
}

// readers returns who can be asked for the bytes below end: of copies all, live ones first, of a code by the number of the
// shard.
func (c *openChunk) readers(end uint64) []chunk.ServerID {
	if c.layout.Coded() {
		byShard := make([]chunk.ServerID, c.layout.Width())
		for _, t := range c.targets {
			if t.received >= end {
				byShard[t.shard] = t.server
			}
		}
		return byShard
	}
	var live, others []chunk.ServerID
	for _, t := range c.targets {
		switch {
		case t.received < end:
		case t.live:
			live = append(live, t.server)
		default:
			others = append(others, t.server)
		}
	}
	return append(live, others...)
}

// locate says where n bytes from pos of a frame are.
func (c *openChunk) locate(fr *frame, pos, n int) location {
	return location{chunk: c.id, layout: c.layout, off: fr.off + uint64(pos), n: n, length: fr.end(), servers: c.readers(fr.end())}
}

// advance settles what every live target has now received, and gives up the memory of what every one has on disk.
func (c *openChunk) advance() {
	live, received, durable := c.holders()
	if live < c.minimum {
		received, durable = 0, 0
	}
	for len(c.queue) > 0 && c.queue[0].end() <= received {
		fr := c.queue[0]
		c.queue[0] = nil
		c.queue = c.queue[1:]
		c.base++
		fr.settled = true
		fr.uncut()
		c.w.settled(fr)
		c.retain(fr)
	}
	c.forgo(durable)
	c.notify()
	c.retire()
}

// retire tells metadata that the chunk is sealed once nothing in it is uncommitted or not on disk, and forgets the chunk once all
// has ended.
func (c *openChunk) retire() {
	if !c.closing || len(c.queue) > 0 || len(c.held) > 0 || c.commits > 0 {
		return
	}
	switch {
	case c.moved && !c.unsure:
		c.sealed, c.moved = true, false
		c.w.seal(c.remains(), c.w.session)
	case c.sealed:
	case slices.ContainsFunc(c.targets, func(t *target) bool { return t.late && t.busy() }):
		return // it may make it yet, and be named then
	default:
		c.sealed = true
		c.w.seal(&pb.ChunkCommit{Chunk: uint64(c.id), Length: c.committed, Servers: c.sealServers(), Seal: true}, c.session)
	}
	if slices.ContainsFunc(c.targets, (*target).busy) {
		return
	}
	c.leave()
	c.notify()
}

func (c *openChunk) sealServers() []uint32 {
	if c.committed == 0 {
		return nil
	}
	return c.servers(c.committed)
}

// remains says what is left of a chunk that frames had to leave: no extent refers to what no disk is known to have.
func (c *openChunk) remains() *pb.ChunkCommit {
	cc := &pb.ChunkCommit{Chunk: uint64(c.id), Length: min(c.firm, c.committed), Seal: true, Cut: true}
	for _, t := range c.targets {
		if t.durable >= c.firm {
			cc.Servers = append(cc.Servers, uint32(t.server))
		}
	}
	return cc
}

// drop gives a target up. What the others hold is enough, or the chunk is lost.
func (c *openChunk) drop(t *target, err error) {
	if !t.live || t.finished {
		return
	}
	t.live, t.err = false, err
	if t.cancel != nil {
		t.cancel()
	}
	t.cond.signal()
	live, _, _ := c.holders()
	c.w.targetFailed(c, t, live, err)
	c.close()
	if live < c.minimum {
		c.lose()
		return
	}
	c.advance()
}

// lose moves everything to other chunks that no commit names, and what commits name if too few targets are left to have it on their
// disks. What has to be read back stays held until it has been, so that nobody deletes the chunk before.
func (c *openChunk) lose() {
	c.lost = true
	c.clearQueue()
	c.close()
	few := c.live() < c.minimum
	var resend, reread []*frame
	for fr := range c.held {
		switch {
		case fr.chunk != c, fr.pinned, fr.rescued: // it moves already; the commit under way decides
		case fr.published && fr.home == nil && !few: // it gets to the disks here
		case fr.published && fr.home == nil:
			fr.home, fr.homeOff = c, fr.off
			c.moved = true
			resend = append(resend, fr)
		case fr.buf != nil:
			delete(c.held, fr)
			resend = append(resend, fr)
		default:
			fr.rescued, fr.settled, fr.durable = true, false, false
			reread = append(reread, fr)
		}
	}
	c.w.reroute(c, resend, reread)
	c.kept.filter(c)
	c.notify()
	c.retire()
}

// clearQueue ends the sending of what is not settled. Frames that nobody wants any more were in memory for this only.
func (c *openChunk) clearQueue() {
	for _, fr := range c.queue {
		fr.uncut()
		if fr.gone {
			fr.free()
		}
	}
	c.queue = nil
}

// release takes a frame off the chunk: it is committed, or nobody wants it.
func (c *openChunk) release(fr *frame) {
	delete(c.held, fr)
	c.retire()
}

func (c *openChunk) live() int {
	live, _, _ := c.holders()
	return live
}

// diskFull tells whether full disks alone are why too few targets live.
func (c *openChunk) diskFull() bool {
	full := 0
	for _, t := range c.targets {
		if !t.live && rpc.Kind(t.err) == rpc.DiskFull {
			full++
		}
	}
	return len(c.targets)-full < c.minimum
}

// leave takes the chunk out of the writer's list.
func (c *openChunk) leave() { delete(c.w.chunks, c) }
