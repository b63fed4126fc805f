package repair

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	"github.com/shoalfs/shoalfs/metaserver/placement"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// verdict is what came of planning for a chunk.
type verdict int

const (
	planned  verdict = iota
	nothing          // it needs nothing, or not now
	busy             // the servers that it would concern have enough to do
	nowhere          // no server can take what it needs
	hopeless         // too few shards are left
)

// start starts moves for the most urgent chunks, as many as the servers can take.
func (e *Engine) start(ctx context.Context, now time.Time) error {
	e.mu.Lock()
	wait := e.heldBack != "" || !e.settled
	e.mu.Unlock()
	if wait {
		return nil
	}
	for ctx.Err() == nil {
		e.mu.Lock()
		ids := e.queue.pop(maxStart)
		e.mu.Unlock()
		if len(ids) == 0 {
			break
		}
		moves, later, err := e.planAll(ids, now)
		if err == nil {
			err = e.begin(moves, now)
		}
		e.mu.Lock()
		for i, l := range later {
			for _, id := range slices.Backward(l) {
				e.queue.lists[i] = append([]chunk.ID{id}, e.queue.lists[i]...)
			}
		}
		e.mu.Unlock()
		if err != nil {
			return err
		}
		if len(moves) == 0 {
			for _, l := range later {
				if len(l) > 0 {
					return nil // all are busy
				}
			}
		}
	}
	return e.balance(ctx, now)
}

// planAll plans for chunks; later are those for which the servers are too busy, by urgency.
func (e *Engine) planAll(ids []chunk.ID, now time.Time) (moves []*move, later [urgencies][]chunk.ID, err error) {
	err = e.cluster.View(func(r kv.Reader) error {
		for _, id := range ids {
			c, ok := namespace.Chunk(r, id)
			if !ok {
				continue
			}
			m, u, v := e.planOne(c, now)
			moves = append(moves, m...)
			if v == busy {
				later[u] = append(later[u], id)
			}
		}
		return nil
	})
	e.mu.Lock()
	for _, m := range moves {
		e.count(m, -1)
	}
	e.mu.Unlock()
	return moves, later, err
}

// planOne plans for one chunk, and counts what it plans so that the next one knows.
func (e *Engine) planOne(c *namespace.ChunkRecord, now time.Time) (moves []*move, urgency int, v verdict) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.assess(c)
	if urgency = a.urgency(c); urgency < 0 {
		return nil, 0, nothing
	}
	moves, v = e.plan(c, &a, now)
	for _, m := range moves {
		e.count(m, 1)
	}
	switch v {
	case nowhere:
		e.blocked.nowhere++
	case hopeless:
		e.blocked.hopeless++
	}
	return moves, urgency, v
}

// blocked is what could not be started since the last survey.
type blocked struct {
	nowhere  int
	hopeless int
}

// plan says which shards of a chunk are to be made where. e.mu is held.
func (e *Engine) plan(c *namespace.ChunkRecord, a *assessment, now time.Time) ([]*move, verdict) {
	r := e.retries[c.ID]
	if r != nil && now.Before(r.after) {
		if e.again.IsZero() || r.after.Before(e.again) {
			e.again = r.after
		}
		return nil, nothing
	}
	if c.Owner != 0 && c.Length == 0 {
		return nil, nothing
	}
	var moves []*move
	out := nothing
	taken := e.taken(c)
	for _, shard := range slices.Concat(a.missing, a.leaving) {
		if slices.ContainsFunc(c.Moves, func(m namespace.Move) bool { return m.Shard == shard }) {
			continue
		}
		target, v := e.target(c, shard, taken, a.alive < c.Layout.Data, r)
		if v != planned {
			out = max(out, v)
			continue
		}
		taken[target] = true
		m := &move{chunk: c.ID, shard: shard, server: target, stored: c.Stored(shard), bytes: c.Layout.ShardLength(c.Length), written: c.Owner != 0}
		if c.Servers[shard] != target {
			m.from = c.Servers[shard]
		}
		moves = append(moves, m)
	}
	return moves, out
}

// taken are the servers that have something of a chunk, or are to get it.
func (e *Engine) taken(c *namespace.ChunkRecord) map[chunk.ServerID]bool {
	taken := map[chunk.ServerID]bool{}
	c.Copies(func(s chunk.ServerID, _ chunk.ID) { taken[s] = true })
	return taken
}

// target chooses the server for a shard. A damaged one is made anew where it is, unless that failed; else placement says, of
// the servers where it did not fail.
func (e *Engine) target(c *namespace.ChunkRecord, shard int, taken map[chunk.ServerID]bool, hopelessly bool, r *retry) (chunk.ServerID, verdict) {
	here := e.servers[c.Servers[shard]]
	inPlace := here != nil && !c.Holds(shard) && c.Owner == 0 && (here.usable || here.doubtful) && !here.full(c)
	if inPlace && (r == nil || r.failures%2 == 0 || hopelessly) {
		return e.allow(here, c)
	}
	if hopelessly {
		return 0, hopeless
	}
	var has, free, failed, doubtful []*pb.Candidate
	for _, s := range e.servers {
		switch {
		case s == here:
		case taken[s.id]:
			has = append(has, s.candidate())
		case s.usable && !s.full(c) && r != nil && r.servers[s.id]:
			failed = append(failed, s.candidate())
		case s.usable && !s.full(c):
			free = append(free, s.candidate())
		case s.doubtful && !s.full(c):
			doubtful = append(doubtful, s.candidate())
		}
	}
	if len(free) == 0 && len(failed) > 0 { // all have been tried: from the first again
		free = failed
		clear(r.servers)
	}
	if len(free) == 0 {
		free = doubtful
	}
	picked := placement.Add(c.ID, has, free, 1)
	if len(picked) == 0 {
		if inPlace {
			return e.allow(here, c)
		}
		return 0, nowhere
	}
	return e.allow(e.servers[picked[0]], c)
}

// allow says whether a server can take another shard now.
func (e *Engine) allow(s *server, c *namespace.ChunkRecord) (chunk.ServerID, verdict) {
	if s.to >= perTarget || s.incoming >= bytesTarget {
		return 0, busy
	}
	for shard, id := range c.Servers {
		if source := e.servers[id]; c.Holds(shard) && source != nil && source.from >= perSource {
			return 0, busy
		}
	}
	return s.id, planned
}

// full tells whether a shard does not fit.
func (s *server) full(c *namespace.ChunkRecord) bool {
	return s.free < s.incoming+c.Layout.ShardLength(c.Length)
}

// begin has moves recorded, and orders given.
func (e *Engine) begin(moves []*move, now time.Time) error {
	for batch := range slices.Chunk(moves, maxStart) {
		op := &pb.StartMoves{}
		for _, m := range batch {
			op.Moves = append(op.Moves, m.proto())
			op.Keep = op.Keep || m.written
		}
		res, err := e.cluster.Propose(&pb.Op{Op: &pb.Op_StartMoves{StartMoves: op}})
		if err != nil {
			return fmt.Errorf("record the start of %d moves of shards: %w", len(batch), err)
		}
		started := map[key]bool{}
		for _, m := range res.Moves {
			started[key{chunk.ID(m.Chunk), int(m.Shard)}] = true
		}
		e.mu.Lock()
		targets := map[chunk.ServerID]bool{}
		for _, m := range batch {
			if started[key{m.chunk, m.shard}] {
				if old := e.moves[m.place()]; old != nil && old.waits { // what it made is gone
					e.drop(old)
				}
				e.adopt(m, now)
				targets[m.server] = true
				continue
			}
			// A deletion there is not done yet, say.
			e.retry(m).after = now.Add(retryAfter)
			e.stale = true
		}
		e.mu.Unlock()
		for id := range targets {
			e.cluster.Poke(id)
		}
	}
	return nil
}
