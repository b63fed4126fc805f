package namespace

import (
	"slices"
	"syscall"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxMoves = 4096     // in one command
	maxLost  = 64 << 10 // shards reported lost in one command
)

// startMoves records that shards of chunks are being made on servers. Only what the leader could not know is left out: the
// state may have changed since it looked.
func (x *tx) startMoves(op *pb.StartMoves) (*pb.Result, error) {
	if len(op.Moves) > maxMoves {
		return nil, fserr.New(syscall.EINVAL, "%d moves, at most %d", len(op.Moves), maxMoves)
	}
	cs := newChunkSet(x)
	res := &pb.Result{}
	for _, m := range op.Moves {
		c, err := cs.get(chunk.ID(m.GetChunk()))
		if err != nil {
			return nil, err
		}
		ok, err := x.mayMove(c, m)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		// Sealed, if it was not: what the writer commits from now on is refused, and it goes on elsewhere.
		if op.Keep && c.Owner != 0 {
			c.sealKept()
		}
		c.Owner = 0
		server, shard := chunk.ServerID(m.Server), int(m.Shard)
		c.Moves = append(slices.Clone(c.Moves), Move{Shard: shard, Server: server, Started: x.index})
		x.Put(bServerChunk, serverChunkKey(server, c.Stored(shard)), present)
		res.Moves = append(res.Moves, m)
	}
	return res, cs.flush()
}

// sealKept seals a chunk under its writer, for whom it stays until that gives it up: what is not committed of it may be nowhere else.
func (c *changedChunk) sealKept() {
	if c.Owner != Rewriter {
		c.Writer = c.Owner
	}
	c.Owner = 0
}

// mayMove tells whether a shard may be made on a server now.
func (x *tx) mayMove(c *changedChunk, m *pb.Move) (bool, error) {
	server, shard := chunk.ServerID(m.GetServer()), int(m.GetShard())
	switch {
	case c == nil, shard >= c.Layout.Width(), c.Length == 0: // nothing committed: its writer has it all, and may be the only one
		return false, nil
	case c.move(shard) >= 0, c.Holders() < c.Layout.Data && c.Servers[shard] != server: // what is there may prove good after all
		return false, nil
	case c.Servers[shard] == server && (c.Holds(shard) || c.Owner != 0): // sealing drops what is not whole
		return false, nil
	}
	for i, s := range c.Servers {
		if s == server && i != shard {
			return false, nil
		}
	}
	if slices.ContainsFunc(c.Moves, func(o Move) bool { return o.Server == server }) {
		return false, nil
	}
	if x.Get(bDeletionIndex, serverChunkKey(server, c.Stored(shard))) != nil {
		return false, nil // the server would delete what it makes
	}
	s, err := getServer(x, server)
	return s != nil && !s.Draining, err
}

// finishMoves ends moves. One that the chunk does not have (any more) is of no consequence: what was to be deleted is.
func (x *tx) finishMoves(op *pb.FinishMoves) (*pb.Result, error) {
	if len(op.Done)+len(op.Failed) > maxMoves {
		return nil, fserr.New(syscall.EINVAL, "%d moves, at most %d", len(op.Done)+len(op.Failed), maxMoves)
	}
	cs := newChunkSet(x)
	for i, m := range append(slices.Clone(op.Done), op.Failed...) {
		c, err := cs.get(chunk.ID(m.GetChunk()))
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue
		}
		k := c.move(int(m.Shard))
		if k < 0 || c.Moves[k].Server != chunk.ServerID(m.Server) {
			continue
		}
		c.endMove(x, k, i < len(op.Done))
	}
	return &pb.Result{}, cs.flush()
}

// endMove takes a move off the chunk. Whoever has not got the shard in the end deletes what it has of it.
func (c *changedChunk) endMove(x *tx, k int, done bool) {
	m := c.Moves[k]
	c.Moves = slices.Delete(slices.Clone(c.Moves), k, k+1)
	loser := m.Server
	if done {
		loser = c.Servers[m.Shard]
		c.Servers = slices.Clone(c.Servers)
		c.Servers[m.Shard] = m.Server
		c.Held |= 1 << m.Shard
	}
	if loser != 0 && loser != c.Servers[m.Shard] {
		x.dropCopy(loser, c.Stored(m.Shard))
	}
}

// loseShards records that shards are damaged or missing on a server, or, when the server is gone for good, that they are
// nowhere.
func (x *tx) loseShards(op *pb.LoseShards) (*pb.Result, error) {
	if len(op.Stored) > maxLost {
		return nil, fserr.New(syscall.EINVAL, "%d lost shards, at most %d", len(op.Stored), maxLost)
	}
	cs := newChunkSet(x)
	server := chunk.ServerID(op.Server)
	for _, id := range op.Stored {
		stored := chunk.ID(id)
		c, err := cs.get(stored.Chunk())
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue
		}
		// What was being made there may be what was found damaged.
		for k := len(c.Moves) - 1; k >= 0; k-- {
			if m := c.Moves[k]; m.Server == server && c.Stored(m.Shard) == stored {
				c.endMove(x, k, false)
			}
		}
		if shard := c.ShardOn(server); shard >= 0 && c.Stored(shard) == stored {
			c.lose(x, shard, op.Gone)
			// As it is with StartMoves. Of what nobody reads, or of which too little is left, its writer may have more.
			if op.Damaged && c.Owner != 0 && c.Live > 0 && c.Holders() >= c.Layout.Data {
				c.sealKept()
				c.keep |= 1 << shard
			}
		}
	}
	return &pb.Result{}, cs.flush()
}

// lose records that a shard is not whole where it is. It stays there, as it may be all that is left of it, unless it is gone.
func (c *changedChunk) lose(x *tx, shard int, gone bool) {
	c.Held &^= 1 << shard
	if gone && c.before.Owner == 0 {
		x.dropCopy(c.Servers[shard], c.Stored(shard))
		c.Servers = slices.Clone(c.Servers)
		c.Servers[shard] = 0
	}
}

// setLayout sets how new data is stored.
func (x *tx) setLayout(op *pb.SetLayout) (*pb.Result, error) {
	layout := chunk.LayoutOf(op.Layout)
	if err := layout.Check(false); !layout.IsZero() && err != nil {
		return nil, fserr.New(syscall.EINVAL, "%v", err)
	}
	in, err := getInode(x, op.Inode)
	switch {
	case err != nil:
		return nil, err
	case !in.isDir() && !in.isFile():
		return nil, fserr.New(syscall.EINVAL, "only files and directories have a policy")
	case !x.cred.Root() && x.cred.UID != in.uid:
		return nil, syscall.EPERM
	}
	if in.layout != layout {
		in.layout = layout
		x.changed(in)
		x.putInode(in)
	}
	return &pb.Result{Attr: in.attr()}, nil
}
