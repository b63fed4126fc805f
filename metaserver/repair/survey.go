package repair

import (
	"context"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Urgencies of chunks: the number of shards that may still be lost, and after all that lack some those that only have to leave
// a server.
const (
	urgentMost = 0
	leaving    = 8
	urgencies  = leaving + 1
)

// queue is the chunks that wait, by urgency.
type queue struct {
	lists [urgencies][]chunk.ID
	cut   bool // there are more
}

func (q *queue) push(urgency int, id chunk.ID) {
	l := &q.lists[urgency]
	if len(*l) >= maxQueue {
		q.cut = true
		return
	}
	*l = append(*l, id)
}

// pop takes up to n of the most urgent.
func (q *queue) pop(n int) []chunk.ID {
	var out []chunk.ID
	for i := range q.lists {
		k := min(n-len(out), len(q.lists[i]))
		out = append(out, q.lists[i][:k]...)
		if q.lists[i] = q.lists[i][k:]; len(q.lists[i]) == 0 {
			q.lists[i] = nil
		}
	}
	return out
}

func (q *queue) empty() bool {
	for i := range q.lists {
		if len(q.lists[i]) > 0 {
			return false
		}
	}
	return true
}

// survey is what looking at all chunks that need something showed.
type survey struct {
	chunks     uint64 // sealed ones, all together
	degraded   uint64
	endangered uint64
	unreadable uint64
	moving     uint64 // shards
	drains     uint64 // shards on servers being drained
	bytes      uint64 // to be copied
	waiting    uint64 // chunks sealed by nobody yet, on servers that are gone or to be drained
}

// assessment is what a chunk needs.
type assessment struct {
	alive   int   // shards that are whole on servers that are not dead
	missing []int // shards to be made because they are not
	leaving []int // shards on servers being drained
}

// assess says what a chunk needs.
func (e *Engine) assess(c *namespace.ChunkRecord) assessment {
	var a assessment
	for shard, id := range c.Servers {
		s := e.servers[id]
		switch {
		case !c.Holds(shard) || s == nil || s.dead():
			a.missing = append(a.missing, shard)
		case s.draining:
			a.leaving = append(a.leaving, shard)
			a.alive++
		default:
			a.alive++
		}
	}
	return a
}

// urgency is where the chunk waits, -1 for nowhere.
func (a *assessment) urgency(c *namespace.ChunkRecord) int {
	switch {
	case len(a.missing) > 0:
		return min(max(a.alive-c.Layout.Data, urgentMost), leaving-1)
	case len(a.leaving) > 0:
		return leaving
	}
	return -1
}

// surveyor makes one survey.
type surveyor struct {
	e     *Engine
	seen  map[chunk.ID]struct{}
	out   survey
	queue queue
	moves []*move
}

// survey looks at all chunks that lack shards, that have some on the move, on dead servers or on ones being drained.
func (e *Engine) survey(ctx context.Context, now time.Time) error {
	e.mu.Lock()
	e.stale = false
	e.mu.Unlock()
	v := &surveyor{e: e, seen: map[chunk.ID]struct{}{}}
	if err := v.run(ctx); err != nil {
		e.mu.Lock()
		e.stale = true
		e.mu.Unlock()
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queue, e.found, e.blocked = v.queue, v.out, blocked{}
	for _, m := range v.moves {
		e.adopt(m, now)
	}
	e.surveyed, e.took = time.Now(), time.Since(now)
	known := true
	for _, s := range e.servers { // who has not been heard of yet may live
		known = known && s.state != pb.ServerState_SERVER_STATE_UNKNOWN
	}
	e.settled = e.settled || known
	for id, r := range e.retries {
		if now.Sub(r.after) > maxRetry {
			delete(e.retries, id)
		}
	}
	return nil
}

func (v *surveyor) run(ctx context.Context) error {
	var owned uint64
	if err := v.e.cluster.View(func(r kv.Reader) error {
		owned = namespace.Owned(r)
		v.out.chunks = namespace.Totals(r).Chunks - owned
		return nil
	}); err != nil {
		return err
	}
	if err := v.pages(ctx, namespace.Degraded, nil); err != nil {
		return err
	}
	for _, s := range v.e.servers {
		if !s.dead() && !s.draining {
			continue
		}
		var shards uint64
		list := func(r kv.Reader, from chunk.ID, fn func(chunk.ID) bool) { namespace.CopiesFrom(r, s.id, from, fn) }
		if err := v.pages(ctx, list, &shards); err != nil {
			return err
		}
		v.e.mu.Lock()
		s.shards, s.counted = shards, true
		v.e.mu.Unlock()
	}
	return nil
}

// pages goes through a listing of (stored) ids, some at a time so that commands get in between.
func (v *surveyor) pages(ctx context.Context, list func(kv.Reader, chunk.ID, func(chunk.ID) bool), count *uint64) error {
	for from, more := chunk.ID(0), true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		more = false
		n := 0
		if err := v.e.cluster.View(func(r kv.Reader) error {
			list(r, from, func(id chunk.ID) bool {
				if n++; n > chunksAView {
					from, more = id, true
					return false
				}
				if count != nil {
					*count++
				}
				v.look(r, id.Chunk())
				return true
			})
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (v *surveyor) look(r kv.Reader, id chunk.ID) {
	if _, again := v.seen[id]; again {
		return
	}
	v.seen[id] = struct{}{}
	c, ok := namespace.Chunk(r, id)
	if !ok {
		return
	}
	if c.Owner != 0 && c.Length == 0 {
		v.out.waiting++ // its writer has all that is in it
		return
	}
	a := v.e.assess(c)
	shard := c.Layout.ShardLength(c.Length)
	v.out.bytes += shard * uint64(len(a.missing)+len(a.leaving))
	v.out.drains += uint64(len(a.leaving))
	v.out.moving += uint64(len(c.Moves))
	for _, m := range c.Moves {
		o := &move{chunk: c.ID, shard: m.Shard, server: m.Server, stored: c.Stored(m.Shard), bytes: shard}
		if c.Servers[m.Shard] != m.Server {
			o.from = c.Servers[m.Shard]
		}
		v.moves = append(v.moves, o)
	}
	if len(a.missing) > 0 {
		switch spare := a.alive - c.Layout.Data; {
		case spare < 0:
			v.out.unreadable++
		case spare == 0 && c.Layout.Parity > 0:
			v.out.endangered++
		default:
			v.out.degraded++
		}
	}
	if u := a.urgency(c); u >= 0 {
		v.queue.push(u, c.ID)
	}
}
