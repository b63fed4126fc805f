package repair

import (
	"fmt"
	"slices"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// move is a shard on its way to a server.
type move struct {
	chunk   chunk.ID
	shard   int
	server  chunk.ServerID
	stored  chunk.ID
	bytes   uint64
	from    chunk.ServerID // loses it in the end; 0: nobody
	written bool           // when it was planned: the chunk has to be sealed for it
	began   time.Time      // under this leader
	ordered time.Time      // when the order was last given
	over    bool           // its end waits to be recorded
	waits   bool           // likewise, for the writer of the chunk: it is not under way any more
}

// place names a move by where it goes.
type place struct {
	server chunk.ServerID
	stored chunk.ID
}

func (m *move) place() place { return place{m.server, m.stored} }

func (m *move) proto() *pb.Move {
	return &pb.Move{Chunk: uint64(m.chunk), Shard: uint32(m.shard), Server: uint32(m.server)}
}

// result is how a move ended.
type result struct {
	*move
	done bool
}

// adopt takes a move into memory that the state has. e.mu is held.
func (e *Engine) adopt(m *move, now time.Time) {
	if e.moves[m.place()] != nil {
		return
	}
	m.began = now
	e.moves[m.place()] = m
	delete(e.sheds, m.place()) // it stays
	e.count(m, 1)
}

// count keeps the numbers of moves of the servers. e.mu is held.
func (e *Engine) count(m *move, d int) {
	if s := e.servers[m.server]; s != nil {
		s.to += d
		s.incoming += uint64(int64(d) * int64(m.bytes))
	}
	if s := e.servers[m.from]; s != nil && m.from != m.server {
		s.from += d
		s.outgoing += uint64(int64(d) * int64(m.bytes))
	}
}

// Orders returns what a server is to be told to make: what it was not told yet, and again what it did not answer.
func (e *Engine) Orders(id chunk.ServerID, limit int) []*pb.CopyOrder {
	now := time.Now()
	var due []*move
	e.mu.Lock()
	for _, m := range e.moves {
		if m.server == id && !m.over && now.Sub(m.ordered) >= orderAgain {
			due = append(due, m)
		}
	}
	// The oldest first: what was ordered before is likely to be under way.
	slices.SortFunc(due, func(a, b *move) int { return a.began.Compare(b.began) })
	due = due[:min(len(due), limit)]
	for _, m := range due {
		m.ordered = now
	}
	e.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	var orders []*pb.CopyOrder
	if err := e.cluster.View(func(r kv.Reader) error {
		for _, m := range due {
			if o := e.order(r, m); o != nil {
				orders = append(orders, o)
			}
		}
		return nil
	}); err != nil {
		return nil // the state failed: this metaserver is about to stop
	}
	return orders
}

// order says how a move is done; nil when the state does not have it (any more).
func (e *Engine) order(r kv.Reader, m *move) *pb.CopyOrder {
	c, ok := namespace.Chunk(r, m.chunk)
	e.mu.Lock()
	defer e.mu.Unlock()
	if !ok || !has(c, m) {
		e.drop(m)
		return nil
	}
	o := &pb.CopyOrder{
		Stored: uint64(m.stored), Layout: c.Layout.Proto(), Shard: uint32(m.shard), Length: c.Layout.ShardLength(c.Length),
		Source: &pb.ChunkInfo{Id: uint64(c.ID), Length: c.Length, Layout: c.Layout.Proto(), Servers: make([]uint32, len(c.Servers))},
	}
	desperate := c.Holders() < c.Layout.Data
	for shard, id := range c.Servers {
		s := e.servers[id]
		if s == nil || s.dead() || s.id == m.server || !c.Holds(shard) && !desperate {
			continue
		}
		o.Source.Servers[shard] = uint32(id)
		o.Servers = append(o.Servers, &pb.ServerInfo{Id: uint32(id), Address: s.address})
	}
	return o
}

// has tells whether a move is in the state.
func has(c *namespace.ChunkRecord, m *move) bool {
	return slices.ContainsFunc(c.Moves, func(o namespace.Move) bool { return o.Shard == m.shard && o.Server == m.server })
}

// drop forgets a move. e.mu is held.
func (e *Engine) drop(m *move) {
	if e.moves[m.place()] == m {
		delete(e.moves, m.place())
		if !m.waits {
			e.count(m, -1)
		}
		e.stale = true
	}
}

// Copied takes a server's answers to orders.
func (e *Engine) Copied(id chunk.ServerID, answers []*pb.CopyResult) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range answers {
		m := e.moves[place{id, chunk.ID(a.Stored)}]
		if m == nil || m.over {
			continue
		}
		if a.Error != "" {
			e.log.Warn("a chunk server could not make a shard; it is tried again", "server", id, "chunk", m.chunk, "shard", m.shard, "error", a.Error)
			e.fail(m)
			continue
		}
		m.over = true
		e.results = append(e.results, result{m, true})
		e.rate.add(time.Now(), m.bytes)
		e.copied.done++
		e.copied.bytes += m.bytes
	}
	e.poke()
}

// fail gives a move up. e.mu is held.
func (e *Engine) fail(m *move) {
	m.over = true
	e.results = append(e.results, result{m, false})
	e.copied.failed++
	r := e.retry(m)
	r.delay = min(2*r.delay, maxRetry)
	r.after = time.Now().Add(r.delay)
	r.failures++
}

// record has the ends of moves recorded.
func (e *Engine) record() error {
	for {
		e.mu.Lock()
		n := min(len(e.results), maxFinish)
		batch := slices.Clone(e.results[:n])
		e.mu.Unlock()
		if n == 0 {
			return nil
		}
		op := &pb.FinishMoves{}
		early, err := e.early(batch)
		if err != nil {
			return err
		}
		for i, r := range batch {
			switch {
			case early[i]:
			case r.done:
				op.Done = append(op.Done, r.proto())
			default:
				op.Failed = append(op.Failed, r.proto())
			}
		}
		if len(op.Done)+len(op.Failed) > 0 {
			if _, err := e.cluster.Propose(&pb.Op{Op: &pb.Op_FinishMoves{FinishMoves: op}}); err != nil {
				return fmt.Errorf("record %d moves of shards: %w", n, err)
			}
		}
		e.mu.Lock()
		e.results = e.results[n:]
		for i, r := range batch {
			if early[i] {
				e.count(r.move, -1)
				r.waits = true
				continue
			}
			e.drop(r.move)
			if r.done {
				delete(e.retries, r.chunk)
				e.shed(r.move)
			}
		}
		e.mu.Unlock()
	}
}

// early tells of each result whether it must not be recorded yet: the shard would be deleted where it is, on a server that is
// up, and what its writer has not committed of the chunk may be nowhere else.
func (e *Engine) early(results []result) ([]bool, error) {
	out := make([]bool, len(results))
	err := e.cluster.View(func(r kv.Reader) error {
		for i, res := range results {
			c, ok := namespace.Chunk(r, res.chunk)
			if !ok || !res.done || c.Writer == 0 || !c.Holds(res.shard) || c.Servers[res.shard] == res.server || !has(c, res.move) {
				continue
			}
			e.mu.Lock()
			s := e.servers[c.Servers[res.shard]]
			out[i] = s != nil && !s.dead()
			e.mu.Unlock()
		}
		return nil
	})
	return out, err
}

// resume has moves recorded that waited for writers.
func (e *Engine) resume() error {
	var waiting []result
	e.mu.Lock()
	for _, m := range e.moves {
		if m.waits {
			waiting = append(waiting, result{m, true})
		}
	}
	e.mu.Unlock()
	if len(waiting) == 0 {
		return nil
	}
	early, err := e.early(waiting)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, r := range waiting {
		if !early[i] {
			e.results = append(e.results, r)
			e.proceed(r.move)
		}
	}
	return nil
}

// underWay is how many moves there are but those that wait for writers. e.mu is held.
func (e *Engine) underWay() int {
	n := len(e.moves)
	for _, m := range e.moves {
		if m.waits {
			n--
		}
	}
	return n
}

// proceed has a move that waited be one that is under way. e.mu is held.
func (e *Engine) proceed(m *move) {
	m.waits = false
	e.count(m, 1)
}

// Waiting is how many shards leave a server as soon as the writers of their chunks have published what they wrote there.
func (e *Engine) Waiting(id chunk.ServerID) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, m := range e.moves {
		if m.waits && m.from == id {
			n++
		}
	}
	return n
}

// shed notes that a server has yet to delete what was moved away from it. e.mu is held.
func (e *Engine) shed(m *move) {
	if m.from != 0 && m.from != m.server {
		e.sheds[place{m.from, m.stored}] = shed{m.bytes, time.Now().Add(shedFor)}
	}
}

// Deleted takes in what a server says it has deleted. It is to be called when what the server holds without that becomes known.
func (e *Engine) Deleted(server chunk.ServerID, ids []uint64) {
	if len(ids) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range ids {
		delete(e.sheds, place{server, chunk.ID(id)})
	}
}

// expire gives up what will not end: the server that was to get the shard is gone, or takes too long.
func (e *Engine) expire(now time.Time) error {
	e.mu.Lock()
	for _, m := range e.moves {
		s := e.servers[m.server]
		lost := s == nil || s.dead() || s.draining
		if m.waits && lost {
			e.proceed(m)
			e.fail(m)
		}
		if !m.over && (lost || now.Sub(m.began) > moveTimeout) {
			e.log.Warn("a shard on its way to a chunk server is given up", "server", m.server, "chunk", m.chunk, "shard", m.shard, "after", now.Sub(m.began).Round(time.Second))
			e.fail(m)
		}
	}
	e.mu.Unlock()
	return e.record()
}
