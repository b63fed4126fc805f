package namespace

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	"github.com/shoalfs/shoalfs/metaserver/placement"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxAlloc      = 256      // chunks in one command
	maxCandidates = 16384    // servers in one command
	maxOwned      = 64 << 10 // chunks that one session may have open
	maxFinished   = 64 << 10 // deletions reported in one command
)

// chunkSet is the chunks that a command changes: each is read once and written once.
type chunkSet struct {
	x      *tx
	chunks map[chunk.ID]*changedChunk
	order  []*changedChunk // as first met, so that nothing depends on the order of a map
	last   *changedChunk   // the one used last: extents of one chunk come together
}

type changedChunk struct {
	*ChunkRecord
	before ChunkRecord
	delta  int64  // of live bytes
	keep   uint32 // shards that stay where they are though they are not whole: they are made anew there; a bit each
}

func newChunkSet(x *tx) *chunkSet { return &chunkSet{x: x} }

// get returns a chunk, nil when there is none.
func (cs *chunkSet) get(id chunk.ID) (*changedChunk, error) {
	if cs.last != nil && cs.last.ID == id {
		return cs.last, nil
	}
	c := cs.chunks[id]
	if c == nil {
		rec, err := getChunk(cs.x, id)
		if rec == nil || err != nil {
			return nil, err
		}
		c = &changedChunk{ChunkRecord: rec, before: *rec}
		if cs.chunks == nil {
			cs.chunks = map[chunk.ID]*changedChunk{}
		}
		cs.chunks[id] = c
		cs.order = append(cs.order, c)
	}
	cs.last = c
	return c, nil
}

// addLive changes the live bytes of a chunk that extents refer to.
func (cs *chunkSet) addLive(id chunk.ID, delta int64) error {
	c, err := cs.get(id)
	if err != nil {
		return err
	}
	if c == nil {
		return damaged(bChunk, key8(uint64(id)))
	}
	c.delta += delta
	return nil
}

// owned returns a chunk that the command's session writes: EINVAL for every other, and for one that was sealed before.
func (cs *chunkSet) owned(id chunk.ID) (*changedChunk, error) {
	c, err := cs.get(id)
	switch {
	case err != nil:
		return nil, err
	case c == nil:
		return nil, fserr.New(syscall.EINVAL, "chunk %v does not exist", id)
	case c.before.Owner != cs.x.session:
		return nil, fserr.New(syscall.EINVAL, "chunk %v is not written by this session", id)
	}
	return c, nil
}

// mayRefer says whether a new extent may lie where it does: in the committed part of a chunk of the session.
func (cs *chunkSet) mayRefer(p *piece) error {
	c, err := cs.owned(p.chunk)
	if err != nil {
		return err
	}
	if p.coff > c.Length || p.len > c.Length-p.coff {
		return fserr.New(syscall.EINVAL, "an extent of %d bytes at %d of chunk %v, which has %d", p.len, p.coff, p.chunk, c.Length)
	}
	return nil
}

// publish applies new lengths, servers and seals.
func (cs *chunkSet) publish(commits []*pb.ChunkCommit) error {
	if len(commits) > maxCommitChunks {
		return fserr.New(syscall.EINVAL, "%d chunks in a command, at most %d", len(commits), maxCommitChunks)
	}
	for _, cc := range commits {
		c, err := cs.owned(chunk.ID(cc.Chunk))
		if err != nil {
			return err
		}
		if err := c.publish(cc); err != nil {
			return err
		}
	}
	return nil
}

// publish applies one ChunkCommit. Servers replace those recorded where the length grows; where it does not, those that
// held it still do. A shorter length is one that a commit of another file overtook, and says nothing new.
func (c *changedChunk) publish(cc *pb.ChunkCommit) error {
	if cc.Length > chunk.MaxLength || cc.Length%uint64(c.Layout.Row()) != 0 {
		return fserr.New(syscall.EINVAL, "chunk %v: a length of %d bytes; it has at most %d, in rows of %d", c.ID, cc.Length, chunk.MaxLength, c.Layout.Row())
	}
	var held uint32
	for _, s := range cc.Servers {
		if s == 0 { // as in a list by shard
			continue
		}
		shard := c.ShardOn(chunk.ServerID(s))
		if shard < 0 {
			return fserr.New(syscall.EINVAL, "chunk %v was not placed on server %d", c.ID, s)
		}
		held |= 1 << shard
	}
	if cc.Length > c.Length {
		if n := bits.OnesCount32(held); n < c.Layout.Min {
			return fserr.New(syscall.EINVAL, "chunk %v: %d servers hold %d bytes, at least %d have to", c.ID, n, cc.Length, c.Layout.Min)
		}
		c.Length, c.Held = cc.Length, held
	} else if c.Length > 0 && cc.Length == c.Length {
		c.Held |= held
	}
	if cc.Seal {
		c.Owner = 0
	}
	return nil
}

// flush writes the chunks back. One that nobody writes or keeps and no extent refers to is deleted.
func (cs *chunkSet) flush() error {
	for _, c := range cs.order {
		if live := int64(c.Live) + c.delta; live < 0 {
			return damaged(bChunk, key8(uint64(c.ID)))
		}
		c.Live = uint64(int64(c.Live) + c.delta)
		cs.x.c.live += uint64(c.delta)
		if err := cs.x.putChunk(c); err != nil {
			return err
		}
	}
	return nil
}

// degraded tells whether a chunk is among those that repair has to look at: sealed, and without all its shards, or with some
// on the move.
func (c *ChunkRecord) degraded() bool { return c.Owner == 0 && (!c.Full() || len(c.Moves) > 0) }

// putChunk records a chunk, and whether it is degraded.
func (x *tx) putChunk(c *changedChunk) error {
	if c.Owner == 0 && c.before.Owner != 0 {
		x.disown(c)
	}
	if keeper := c.before.Keeper(); keeper != 0 && c.Keeper() == 0 {
		x.Delete(bOwned, key16(keeper, uint64(c.ID)))
		if err := x.countOwned(keeper, -1); err != nil {
			return err
		}
	}
	key := key8(uint64(c.ID))
	was := c.before.degraded()
	if c.Keeper() == 0 && c.Live == 0 {
		c.Copies(x.dropCopy)
		x.Delete(bChunk, key)
		if was {
			x.Delete(bDegraded, key)
		}
		return x.subtract(&x.c.chunks, 1, "chunks")
	}
	switch is := c.degraded(); {
	case is && !was:
		x.Put(bDegraded, key, present)
	case was && !is:
		x.Delete(bDegraded, key)
	}
	x.Put(bChunk, key, c.encode())
	return nil
}

// disown completes the sealing of a chunk. What servers have of shards that are not whole is garbage, unless without it too little
// would be left: where all of them lost the end of the chunk, what lies before it is there. What is damaged is no garbage either.
func (x *tx) disown(c *changedChunk) {
	c.Servers = slices.Clone(c.Servers) // c.before keeps the others
	for shard, s := range c.Servers {
		if s != 0 && !c.Holds(shard) && c.keep&(1<<shard) == 0 && c.Holders() >= c.Layout.Data {
			x.dropCopy(s, c.Stored(shard))
			c.Servers[shard] = 0
		}
	}
}

// dropCopy has what a server has under a stored id deleted.
func (x *tx) dropCopy(server chunk.ServerID, id chunk.ID) {
	key := serverChunkKey(server, id)
	x.Delete(bServerChunk, key)
	if x.Get(bDeletionIndex, key) != nil {
		return
	}
	x.Put(bDeletion, deletionKey(server, x.now, id), present)
	x.Put(bDeletionIndex, key, binary.BigEndian.AppendUint64([]byte{formatVersion}, uint64(max(x.now, 0))))
	x.c.deletions++
}

func (x *tx) allocChunks(op *pb.AllocChunks) (*pb.Result, error) {
	layout := chunk.LayoutOf(op.Layout)
	if err := x.mayAlloc(layout, op.Count, max(len(op.Candidates), len(op.Avoid))); err != nil {
		return nil, err
	}
	if err := x.countOwned(x.session, int64(op.Count)); err != nil {
		return nil, err
	}
	candidates := x.eligible(op.Candidates, op.Avoid, layout.Min)
	if len(candidates) < layout.Min {
		return nil, tooFew(len(candidates), layout)
	}
	res := &pb.Result{Chunks: make([]*pb.AllocatedChunk, 0, op.Count)}
	for range op.Count {
		res.Chunks = append(res.Chunks, x.newChunk(x.session, layout, candidates))
	}
	return res, nil
}

// mayAlloc checks what can be wrong with an allocation.
func (x *tx) mayAlloc(layout chunk.Layout, count uint32, servers int) error {
	switch {
	case count == 0 || count > maxAlloc:
		return fserr.New(syscall.EINVAL, "%d chunks to allocate, 1 to %d", count, maxAlloc)
	case servers > maxCandidates:
		return fserr.New(syscall.EINVAL, "%d servers to choose from or avoid, at most %d", servers, maxCandidates)
	case x.c.nextChunk+uint64(count) > chunk.MaxID:
		return fserr.New(syscall.ENOSPC, "this cluster has given out all %d ids of chunks", uint64(chunk.MaxID))
	}
	if err := layout.Check(true); err != nil {
		return fserr.New(syscall.EINVAL, "a layout with %v", err)
	}
	return nil
}

func tooFew(n int, layout chunk.Layout) error {
	return fserr.New(syscall.EAGAIN, "%d servers are fit to be written to, %v needs %d", n, layout, layout.Min)
}

// newChunk makes a chunk and says where it goes.
func (x *tx) newChunk(owner uint64, layout chunk.Layout, candidates []*pb.Candidate) *pb.AllocatedChunk {
	c := &ChunkRecord{ID: chunk.ID(x.c.nextChunk), Layout: layout, Owner: owner}
	x.c.nextChunk++
	x.c.chunks++
	c.Servers = place(c.ID, layout, candidates)
	servers := make([]uint32, len(c.Servers))
	for shard, s := range c.Servers {
		if servers[shard] = uint32(s); s != 0 {
			x.Put(bServerChunk, serverChunkKey(s, c.Stored(shard)), present)
		}
	}
	x.Put(bChunk, key8(uint64(c.ID)), c.encode())
	x.Put(bOwned, key16(owner, uint64(c.ID)), present)
	return &pb.AllocatedChunk{Id: uint64(c.ID), Servers: servers, Layout: layout.Proto()}
}

// place says which server gets which shard of a chunk; 0 where there are not enough.
func place(id chunk.ID, layout chunk.Layout, candidates []*pb.Candidate) []chunk.ServerID {
	servers := placement.Pick(id, candidates, layout.Width())
	return append(servers, make([]chunk.ServerID, layout.Width()-len(servers))...)
}

// eligible are the candidates that are registered and not to be avoided; those too when without them there are not enough.
func (x *tx) eligible(candidates []*pb.Candidate, avoid []uint32, least int) []*pb.Candidate {
	seen := make(map[uint32]bool, len(candidates))
	var good, avoided []*pb.Candidate
	for _, c := range candidates {
		if c == nil || seen[c.Server] || x.Get(bServer, serverKey(chunk.ServerID(c.Server))) == nil {
			continue
		}
		seen[c.Server] = true
		if slices.Contains(avoid, c.Server) {
			avoided = append(avoided, c)
		} else {
			good = append(good, c)
		}
	}
	if len(good) < least {
		good = append(good, avoided...)
	}
	return good
}

func (x *tx) sealChunks(op *pb.SealChunks) (*pb.Result, error) {
	if len(op.Chunks) > maxCommitChunks {
		return nil, fserr.New(syscall.EINVAL, "%d chunks to seal, at most %d", len(op.Chunks), maxCommitChunks)
	}
	cs := newChunkSet(x)
	var mine []*pb.ChunkCommit
	for _, cc := range op.Chunks {
		c, err := cs.get(chunk.ID(cc.Chunk))
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue
		}
		if c.Writer == x.session { // repair sealed it
			c.Writer = 0
		}
		if keeper := c.before.Keeper(); cc.Cut && (keeper == 0 || keeper == x.session) {
			if err := c.cut(cc); err != nil {
				return nil, err
			}
			continue
		}
		if c.before.Owner == 0 { // sealed already
			continue
		}
		// A length of zero is common: the client gives up what it did not use.
		mine = append(mine, &pb.ChunkCommit{Chunk: cc.Chunk, Length: max(cc.Length, c.Length), Servers: cc.Servers, Seal: true})
	}
	if err := cs.publish(mine); err != nil {
		return nil, err
	}
	if err := cs.flush(); err != nil {
		return nil, err
	}
	return &pb.Result{}, nil
}

func (x *tx) finishDeletions(op *pb.FinishDeletions) (*pb.Result, error) {
	if len(op.Chunks) > maxFinished {
		return nil, fserr.New(syscall.EINVAL, "%d deletions, at most %d", len(op.Chunks), maxFinished)
	}
	server := chunk.ServerID(op.Server)
	for _, id := range op.Chunks {
		key := serverChunkKey(server, chunk.ID(id))
		v := x.Get(bDeletionIndex, key)
		if v == nil {
			continue
		}
		if len(v) != 9 || v[0] != formatVersion {
			return nil, damaged(bDeletionIndex, key)
		}
		x.Delete(bDeletion, deletionKey(server, int64(binary.BigEndian.Uint64(v[1:])), chunk.ID(id)))
		x.Delete(bDeletionIndex, key)
		if err := x.subtract(&x.c.deletions, 1, "deletions"); err != nil {
			return nil, err
		}
	}
	return &pb.Result{}, nil
}
