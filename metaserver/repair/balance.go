package repair

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	"github.com/shoalfs/shoalfs/metaserver/placement"
)

const (
	balanceEvery = time.Second
	balanceMoves = 16        // under way at once for balance
	balanceLook  = 4096      // records looked at in one round
	tolerance    = 20        // a server is as full as the others if it differs by at most one in so many parts
	leastUneven  = 128 << 20 // bytes below which no difference matters
	// balanceAfter is how long balance waits under a new leader, who does not know what servers are about to delete: more than
	// clients may have that cached.
	balanceAfter = 20 * time.Second
	// shedFor is after how long a server is no longer believed to delete what was moved away from it.
	shedFor = 10 * time.Minute
)

// shed is what was moved away from a server, and is counted in what it says it holds until it has deleted it: when no client can
// have it cached any more.
type shed struct {
	bytes uint64
	until time.Time
}

// balance moves shards from servers that are fuller than others, measured by their size, to those that are less so, while
// nothing more urgent is to be done. Of what a server has it moves first what placement would rather have on the other.
func (e *Engine) balance(ctx context.Context, now time.Time) error {
	over, under := e.uneven(now)
	for _, from := range over {
		for _, to := range under {
			bytes := min(from.bytes, to.bytes)
			moves, err := e.choose(ctx, from.server, to.server, bytes, true)
			if err == nil && len(moves) == 0 {
				moves, err = e.choose(ctx, from.server, to.server, bytes, false)
			}
			if err != nil {
				return err
			}
			if len(moves) > 0 {
				return e.begin(moves, now)
			}
		}
	}
	return nil
}

// share is a server with the bytes that it has too many or too few of.
type share struct {
	*server
	bytes uint64
}

// pairs bounds the servers that are tried on either side: what one has may all be where the other must not have it.
const pairs = 4

// uneven returns the servers that are too full and those that are not full enough, those that differ most first; none when there
// is nothing to do.
func (e *Engine) uneven(now time.Time) (over, under []share) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now.Sub(e.balanced) < balanceEvery || !e.queue.empty() || e.underWay() >= balanceMoves || e.found.drains > 0 {
		return nil, nil
	}
	e.balanced = now
	for _, info := range e.cluster.Servers() { // a survey may have come in between, and with it what servers have deleted since
		if s := e.servers[chunk.ServerID(info.Id)]; s != nil {
			s.used = usedBy(info)
		}
	}
	going := map[chunk.ServerID]uint64{}
	for at, s := range e.sheds {
		if now.After(s.until) {
			delete(e.sheds, at)
			continue
		}
		going[at.server] += s.bytes
	}
	var used, capacity float64
	holds := map[*server]float64{}
	for _, s := range e.servers {
		if !s.usable || s.capacity == 0 {
			continue
		}
		holds[s] = max(0, float64(s.used)+float64(s.incoming)-float64(s.outgoing)-float64(going[s.id]))
		used += holds[s]
		capacity += float64(s.capacity)
	}
	e.excess = 0
	for s, n := range holds {
		fair := used * float64(s.capacity) / capacity
		slack := max(fair/tolerance, leastUneven)
		switch d := n - fair; {
		case d > 0:
			over = append(over, share{s, uint64(d)})
			if d > slack {
				e.excess += uint64(d)
			}
		case d < 0:
			under = append(under, share{s, uint64(-d)})
			if -d > slack {
				e.excess = max(e.excess, 1)
			}
		}
	}
	if e.excess == 0 {
		return nil, nil
	}
	most := func(a, b share) int { return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.id, b.id)) }
	slices.SortFunc(over, most)
	slices.SortFunc(under, most)
	return over[:min(len(over), pairs)], under[:min(len(under), pairs)]
}

// choose finds shards on one server to move to another, preferred there only those that placement would rather have there.
func (e *Engine) choose(ctx context.Context, from, to *server, bytes uint64, preferred bool) ([]*move, error) {
	var moves []*move
	cursor := e.cursors[from.id]
	looked := 0
	for looked < balanceLook && bytes > 0 && ctx.Err() == nil {
		page := 0
		err := e.cluster.View(func(r kv.Reader) error {
			namespace.CopiesFrom(r, from.id, cursor, func(stored chunk.ID) bool {
				if page++; page > chunksAView || bytes == 0 || len(moves) >= balanceMoves {
					return false
				}
				cursor = stored + 1
				m := e.movable(r, from, to, stored, preferred)
				if m != nil && m.bytes <= 2*bytes { // or it would come back
					moves = append(moves, m)
					bytes -= min(bytes, m.bytes)
				}
				return true
			})
			return nil
		})
		if err != nil {
			return nil, err
		}
		looked += max(page, 1)
		if page <= chunksAView && len(moves) < balanceMoves && bytes > 0 { // the end of what it has
			cursor = 0
			break
		}
		if len(moves) >= balanceMoves {
			break
		}
	}
	e.cursors[from.id] = cursor
	return moves, nil
}

// movable returns the move of a shard to a server, nil where it should not go there.
func (e *Engine) movable(r kv.Reader, from, to *server, stored chunk.ID, preferred bool) *move {
	c, ok := namespace.Chunk(r, stored.Chunk())
	e.mu.Lock()
	defer e.mu.Unlock()
	if !ok || c.Keeper() != 0 || !c.Full() || len(c.Moves) > 0 || c.ShardOn(to.id) >= 0 || to.full(c) {
		return nil
	}
	shard := c.ShardOn(from.id)
	a, b := to.candidate(), from.candidate()
	if shard < 0 || c.Stored(shard) != stored || preferred && !placement.Prefers(c.ID, a, b) {
		return nil
	}
	for i, id := range c.Servers {
		if s := e.servers[id]; i != shard && s != nil && placement.Shares(a.Domain, s.domain) > placement.Shares(b.Domain, s.domain) {
			return nil // they would fail together
		}
	}
	return &move{chunk: c.ID, shard: shard, server: to.id, stored: stored, bytes: c.Layout.ShardLength(c.Length), from: from.id}
}
