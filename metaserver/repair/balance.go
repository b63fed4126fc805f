package repair

import (
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
	// shedFor is how long what was moved away from a server may still be counted in what it says it holds: it is deleted when
	// no client can have it cached any more.
	shedFor = 20 * time.Second
)

// shed is bytes that a server is about to delete.
type shed struct {
	server chunk.ServerID
	bytes  uint64
	until  time.Time
}

// balance moves shards from servers that are fuller than others, measured by their size, to those that are less so, while
// nothing more urgent is to be done. Of what a server has it moves what placement would rather have on the other: what it
// would move back later, were servers to come and go, is left alone.
func (e *Engine) balance(ctx context.Context, now time.Time) error {
	from, to, bytes := e.uneven(now)
	if bytes == 0 {
		return nil
	}
	moves, err := e.choose(ctx, from, to, bytes)
	if err != nil {
		return err
	}
	return e.begin(moves, now)
}

// uneven returns the servers that differ most from the mean, one that is too full and one that is not full enough, and how many
// bytes to move from one to the other now; 0 when there is nothing to do.
func (e *Engine) uneven(now time.Time) (from, to *server, bytes uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sheds = slices.DeleteFunc(e.sheds, func(s shed) bool { return now.After(s.until) })
	if now.Sub(e.balanced) < balanceEvery || !e.queue.empty() || len(e.moves) >= balanceMoves || e.found.drains > 0 {
		return nil, nil, 0
	}
	e.balanced = now
	going := map[chunk.ServerID]uint64{}
	for _, s := range e.sheds {
		going[s.server] += s.bytes
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
	var over, under float64
	e.excess = 0
	for s, n := range holds {
		fair := used * float64(s.capacity) / capacity
		slack := max(fair/tolerance, leastUneven)
		if n-fair > over {
			over, from = n-fair, s
		}
		if fair-n > under {
			under, to = fair-n, s
		}
		if d := n - fair; d > slack {
			e.excess += uint64(d)
			bytes = 1
		} else if -d > slack {
			bytes = 1
		}
	}
	if bytes == 0 || from == nil || to == nil {
		return nil, nil, 0
	}
	return from, to, uint64(min(over, under))
}

// choose finds shards on one server to move to another.
func (e *Engine) choose(ctx context.Context, from, to *server, bytes uint64) ([]*move, error) {
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
				m := e.movable(r, from, to, stored)
				if m != nil && m.bytes <= bytes+leastUneven/2 {
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
func (e *Engine) movable(r kv.Reader, from, to *server, stored chunk.ID) *move {
	c, ok := namespace.Chunk(r, stored.Chunk())
	if !ok || c.Owner != 0 || !c.Full() || len(c.Moves) > 0 || c.ShardOn(to.id) >= 0 || to.full(c) {
		return nil
	}
	shard := c.ShardOn(from.id)
	a, b := to.candidate(), from.candidate()
	if shard < 0 || c.Stored(shard) != stored || !placement.Prefers(c.ID, a, b) {
		return nil
	}
	for i, id := range c.Servers {
		if s := e.servers[id]; i != shard && s != nil && placement.Shares(a.Domain, s.domain) > placement.Shares(b.Domain, s.domain) {
			return nil // they would fail together
		}
	}
	return &move{chunk: c.ID, shard: shard, server: to.id, stored: stored, bytes: c.Layout.ShardLength(c.Length), from: from.id}
}
