package metaserver

import (
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxOrders = 64      // shards to be made in one message
	maxChecks = 4096    // shards to be checked that wait, of one server
	maxLose   = 4096    // shards in one LoseShards
	scrubEach = 1 << 10 // checks in one message
)

// orderer has chunk servers make shards. Its orders go out with the heartbeats, and the answers come back with them.
type orderer interface {
	// Orders returns what a server is to be told to make now, at most so many.
	Orders(server chunk.ServerID, limit int) []*pb.CopyOrder
	// Copied takes a server's answers, to whosever orders.
	Copied(server chunk.ServerID, answers []*pb.CopyResult)
}

// orders asks all that have some, the more urgent first.
func (l *leader) orders(server chunk.ServerID) []*pb.CopyOrder {
	var out []*pb.CopyOrder
	for _, o := range l.orderers {
		out = append(out, o.Orders(server, maxOrders-len(out))...)
	}
	return out
}

// repairCluster is the leader as repair needs it.
type repairCluster struct{ l *leader }

func (c repairCluster) View(fn func(kv.Reader) error) error   { return c.l.s.db.ViewContext(c.l.ctx, fn) }
func (c repairCluster) Propose(op *pb.Op) (*pb.Result, error) { return c.l.own(op) }
func (c repairCluster) Servers() []*pb.ServerInfo             { return c.l.live.Servers() }
func (c repairCluster) Domain(id chunk.ServerID) []string     { return c.l.live.Domain(id) }
func (c repairCluster) Poke(id chunk.ServerID)                { c.l.poke(id) }
func (l *leader) copyRate() uint64                            { return uint64(max(l.s.cfg.RepairRate, 0)) }
func (l *leader) stream(id chunk.ServerID) (h *heartbeats, ok bool) {
	h, ok = l.beats[id]
	return h, ok
}

// poke has a chunk server told what there is to tell, without waiting for its next heartbeat.
func (l *leader) poke(id chunk.ServerID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h, ok := l.stream(id); ok {
		select {
		case h.poked <- struct{}{}:
		default:
		}
	}
}

// check has a server check a shard that a client says is bad: only the server's own word makes it so.
func (l *leader) check(server chunk.ServerID, stored chunk.ID) {
	l.mu.Lock()
	if ids := l.checks[server]; len(ids) < maxChecks && !slices.Contains(ids, uint64(stored)) {
		l.checks[server] = append(ids, uint64(stored))
	}
	l.mu.Unlock()
	l.poke(server)
}

func (l *leader) takeChecks(server chunk.ServerID) []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := l.checks[server]
	n := min(len(ids), scrubEach)
	if l.checks[server] = ids[n:]; len(ids) == n {
		delete(l.checks, server)
	}
	return ids[:n]
}

// lost records that a server has found shards damaged, or else that they are missing or too short, and has them made anew.
func (l *leader) lost(server chunk.ServerID, stored []chunk.ID, damaged bool) error {
	var ids []uint64
	if err := l.s.db.ViewContext(l.ctx, func(r kv.Reader) error {
		for _, id := range stored {
			if c, ok := namespace.Chunk(r, id.Chunk()); ok && matters(c, server, id, damaged) {
				ids = append(ids, uint64(id))
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for batch := range slices.Chunk(ids, maxLose) {
		op := &pb.LoseShards{Server: uint32(server), Stored: batch, Damaged: damaged}
		if _, err := l.own(&pb.Op{Op: &pb.Op_LoseShards{LoseShards: op}}); err != nil {
			return err
		}
	}
	if len(ids) > 0 {
		l.repair.Changed()
	}
	return nil
}

// matters tells whether it changes anything that a shard is not whole on a server: it counts there, or will with the next commit.
func matters(c *namespace.ChunkRecord, server chunk.ServerID, id chunk.ID, damaged bool) bool {
	shard := c.ShardOn(server)
	return shard >= 0 && c.Stored(shard) == id && (c.Holds(shard) || damaged && c.Owner != 0 && c.Live > 0)
}

// scrubbed takes how far a server's scrub is. A new leader learns so of a pass that the one before asked for.
func (l *leader) scrubbed(server chunk.ServerID, p *pb.ScrubProgress) {
	if p == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.scrubs[server] = p
	l.scrubPass = max(l.scrubPass, p.Pass)
}

// fillServers adds what repair knows to the description of servers.
func (l *leader) fillServers(list []*pb.ServerInfo) {
	held := l.repair.Report().HeldBack
	for _, s := range list {
		n, ok := l.repair.Shards(chunk.ServerID(s.Id))
		if !ok {
			s.Shards = s.Chunks
			continue
		}
		s.Shards = n
		if !s.Draining {
			continue
		}
		switch {
		case n == 0:
			s.Progress = "drained: it holds nothing, and can be removed"
		case held != "":
			s.Progress = "drain waits: " + held
		}
	}
}
