package namespace

import (
	"encoding/binary"
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
	maxReplicas   = 32       // copies of a chunk
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
	delta  int64 // of live bytes
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
	if cc.Length > chunk.MaxLength {
		return fserr.New(syscall.EINVAL, "chunk %v: a length of %d bytes, at most %d", c.ID, cc.Length, chunk.MaxLength)
	}
	servers := make([]chunk.ServerID, 0, len(c.Targets))
	for _, s := range cc.Servers {
		if !slices.Contains(c.Targets, chunk.ServerID(s)) {
			return fserr.New(syscall.EINVAL, "chunk %v was not placed on server %d", c.ID, s)
		}
		if !slices.Contains(servers, chunk.ServerID(s)) {
			servers = append(servers, chunk.ServerID(s))
		}
	}
	if cc.Length > c.Length {
		if len(servers) < int(c.MinCopies) {
			return fserr.New(syscall.EINVAL, "chunk %v: %d servers hold %d bytes, at least %d have to", c.ID, len(servers), cc.Length, c.MinCopies)
		}
		c.Length, c.Servers = cc.Length, servers
	} else if c.Length > 0 && cc.Length == c.Length {
		for _, s := range servers {
			if !slices.Contains(c.Servers, s) {
				c.Servers = append(c.Servers, s)
			}
		}
	}
	if cc.Seal {
		c.Owner = 0
	}
	return nil
}

// flush writes the chunks back. One that nobody writes and no extent refers to is deleted.
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

func (x *tx) putChunk(c *changedChunk) error {
	if c.Owner == 0 && c.before.Owner != 0 {
		if err := x.disown(c); err != nil {
			return err
		}
	}
	if c.Owner == 0 && c.Live == 0 {
		for _, s := range c.Copies() {
			x.dropCopy(s, c.ID)
		}
		x.Delete(bChunk, key8(uint64(c.ID)))
		return x.subtract(&x.c.chunks, 1, "chunks")
	}
	x.Put(bChunk, key8(uint64(c.ID)), c.encode())
	return nil
}

// disown completes the sealing of a chunk. Targets that do not hold all of it hold garbage.
func (x *tx) disown(c *changedChunk) error {
	x.Delete(bOwned, key16(c.before.Owner, uint64(c.ID)))
	for _, s := range c.Targets {
		if !slices.Contains(c.Servers, s) {
			x.dropCopy(s, c.ID)
		}
	}
	c.Targets = nil
	return x.countOwned(c.before.Owner, -1)
}

// dropCopy has a server's copy of a chunk deleted.
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
	layout := op.Layout
	switch {
	case op.Count == 0 || op.Count > maxAlloc:
		return nil, fserr.New(syscall.EINVAL, "%d chunks to allocate, 1 to %d", op.Count, maxAlloc)
	case len(op.Candidates) > maxCandidates || len(op.Avoid) > maxCandidates:
		return nil, fserr.New(syscall.EINVAL, "%d servers to choose from or avoid, at most %d", max(len(op.Candidates), len(op.Avoid)), maxCandidates)
	case layout.GetReplicas() == 0 || layout.Replicas > maxReplicas || layout.MinCopies == 0 || layout.MinCopies > layout.Replicas:
		return nil, fserr.New(syscall.EINVAL, "a layout of %d copies, at least %d", layout.GetReplicas(), layout.GetMinCopies())
	}
	if err := x.countOwned(x.session, int64(op.Count)); err != nil {
		return nil, err
	}
	candidates := x.eligible(op)
	if len(candidates) < int(layout.MinCopies) {
		return nil, fserr.New(syscall.EAGAIN, "%d servers are fit to be written to, %d copies are needed", len(candidates), layout.MinCopies)
	}
	res := &pb.Result{Chunks: make([]*pb.AllocatedChunk, 0, op.Count)}
	for range op.Count {
		c := &ChunkRecord{ID: chunk.ID(x.c.nextChunk), Replicas: layout.Replicas, MinCopies: layout.MinCopies, Owner: x.session}
		x.c.nextChunk++
		x.c.chunks++
		c.Targets = placement.Pick(c.ID, candidates, int(layout.Replicas))
		c.Servers = c.Targets
		servers := make([]uint32, len(c.Targets))
		for i, s := range c.Targets {
			servers[i] = uint32(s)
			x.Put(bServerChunk, serverChunkKey(s, c.ID), present)
		}
		x.Put(bChunk, key8(uint64(c.ID)), c.encode())
		x.Put(bOwned, key16(x.session, uint64(c.ID)), present)
		res.Chunks = append(res.Chunks, &pb.AllocatedChunk{Id: uint64(c.ID), Servers: servers, Layout: c.Layout()})
	}
	return res, nil
}

// eligible are the candidates that are registered and that the client did not ask to avoid; those too when without them
// there are not enough.
func (x *tx) eligible(op *pb.AllocChunks) []*pb.Candidate {
	seen := make(map[uint32]bool, len(op.Candidates))
	var good, avoided []*pb.Candidate
	for _, c := range op.Candidates {
		if c == nil || seen[c.Server] || x.Get(bServer, serverKey(chunk.ServerID(c.Server))) == nil {
			continue
		}
		seen[c.Server] = true
		if slices.Contains(op.Avoid, c.Server) {
			avoided = append(avoided, c)
		} else {
			good = append(good, c)
		}
	}
	if len(good) < int(op.Layout.MinCopies) {
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
		if c == nil || c.before.Owner == 0 { // sealed already: there is nothing to give up
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
