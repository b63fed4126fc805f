package metaserver

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

const (
	maxOrders = 64   // shards to be made in one message
	maxChecks = 4096 // shards to be checked that wait, of one server
	maxLose   = 4096 // shards in one LoseShards
	maxDoubts = 64 << 10
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

func (c repairCluster) View(fn func(kv.Reader) error) error { return c.l.s.db.ViewContext(c.l.ctx, fn) }
func (c repairCluster) Servers() []*pb.ServerInfo           { return c.l.live.Servers() }
func (c repairCluster) Domain(id chunk.ServerID) []string   { return c.l.live.Domain(id) }
func (c repairCluster) Poke(id chunk.ServerID)              { c.l.poke(id) }
func (l *leader) copyRate() uint64                          { return uint64(max(l.s.cfg.RepairRate, 0)) }
func (l *leader) stream(id chunk.ServerID) (h *heartbeats, ok bool) {
	h, ok = l.beats[id]
	return h, ok
}

// Propose refuses under another leadership, even if it is this metaserver's again: another leader may have given up what this
// one remembers, and begun it anew, and leases that it granted were not taken back.
func (c repairCluster) Propose(op *pb.Op) (*pb.Result, error) {
	if c.l.s.node.Term() != c.l.term {
		return nil, c.l.s.notLeader()
	}
	return c.l.own(op)
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

// lost records that a server has found shards damaged, or that it lacks some or has them shorter than the given length, and has
// them made anew. Where a shard may be counted as whole later, as somebody writes the chunk, or the shard is on its way there,
// that is remembered.
func (l *leader) lost(server chunk.ServerID, bad []chunk.ID, short map[chunk.ID]uint64) error {
	var written, others []uint64 // the damaged ones of chunks that are being written, and all else
	doubts := map[placed]uint64{}
	if err := l.s.db.ViewContext(l.ctx, func(r kv.Reader) error {
		for _, id := range slices.Concat(bad, slices.Sorted(maps.Keys(short))) {
			c, ok := namespace.Chunk(r, id.Chunk())
			if !ok {
				continue
			}
			lacks := short[id]
			switch {
			case counts(c, server, id) && (lacks > 0 || c.Owner == 0):
				others = append(others, uint64(id))
			case lacks == 0 && (counts(c, server, id) || c.Owner != 0 && c.Live > 0 && mayCount(c, server, id)):
				written = append(written, uint64(id)) // what does not count now would with the next commit
			}
			if lacks > 0 && c.Owner != 0 || lacks == 0 && mayCount(c, server, id) {
				doubts[placed{server, id}] = lacks
			}
		}
		return nil
	}); err != nil {
		return err
	}
	l.mu.Lock()
	for p, length := range doubts {
		if len(l.doubts) < maxDoubts { // of the others the next inventory tells
			l.doubts[p] = length
		}
	}
	l.mu.Unlock()
	return errors.Join(l.lose(server, written, true), l.lose(server, others, false))
}

// lose records that shards are damaged, or else that they are missing or too short.
func (l *leader) lose(server chunk.ServerID, ids []uint64, damaged bool) error {
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
		default:
			if n := l.repair.Waiting(chunk.ServerID(s.Id)); n > 0 {
				s.Progress = fmt.Sprintf("%s copied, and to leave once clients have published what they write there", plural(n, "shard"))
			}
		}
	}
}

// counts tells whether a shard counts as whole on a server.
func counts(c *namespace.ChunkRecord, server chunk.ServerID, stored chunk.ID) bool {
	shard := c.ShardOn(server)
	return shard >= 0 && c.Holds(shard) && c.Stored(shard) == stored
}

// moving tells whether a shard is being made on a server.
func moving(c *namespace.ChunkRecord, server chunk.ServerID, stored chunk.ID) bool {
	return slices.ContainsFunc(c.Moves, func(m namespace.Move) bool { return m.Server == server && c.Stored(m.Shard) == stored })
}

// mayCount tells whether a shard may be counted as whole on a server by a command that knows nothing of what that found.
func mayCount(c *namespace.ChunkRecord, server chunk.ServerID, stored chunk.ID) bool {
	return c.Keeper() != 0 && c.BelongsOn(server, stored) || moving(c, server, stored)
}

// settleDoubts sees to shards that have come to count as whole since they were found not to be: those that were too short are
// for certain, and servers look again at those that were damaged. It forgets those that will never count, or are made anew.
func (l *leader) settleDoubts() error {
	l.mu.Lock()
	doubts := maps.Clone(l.doubts)
	l.mu.Unlock()
	var check, short, over []placed
	for part := range slices.Chunk(slices.Collect(maps.Keys(doubts)), chunksPerView) {
		if err := l.s.db.ViewContext(l.ctx, func(r kv.Reader) error {
			for _, p := range part {
				c, ok := namespace.Chunk(r, p.stored.Chunk())
				lacks := doubts[p]
				switch {
				case !ok || lacks > 0 && (moving(c, p.server, p.stored) || c.Layout.ShardLength(c.Length) < lacks):
					over = append(over, p)
				case counts(c, p.server, p.stored) && lacks > 0:
					if short = append(short, p); c.Owner == 0 { // from now on it counts only once it is made anew
						over = append(over, p)
					}
				case counts(c, p.server, p.stored):
					check = append(check, p)
				case !mayCount(c, p.server, p.stored):
					over = append(over, p)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	for _, p := range short {
		if err := l.lose(p.server, []uint64{uint64(p.stored)}, false); err != nil {
			return err
		}
	}
	l.mu.Lock()
	for _, p := range slices.Concat(check, over) {
		delete(l.doubts, p)
	}
	l.mu.Unlock()
	for _, p := range check {
		l.check(p.server, p.stored)
	}
	return nil
}

// placed is a shard on a server.
type placed struct {
	server chunk.ServerID
	stored chunk.ID
}
