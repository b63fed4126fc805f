package metaserver

import (
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// The registry.

// order sends something to a server, if it is connected.
func (w *race) order(id chunk.ServerID, o raceOrder) bool {
	s := w.servers[id]
	if s == nil || s.term != w.lead.term {
		return false
	}
	o.stream = s.stream
	s.inbox = append(s.inbox, o)
	return true
}

// orderDeletions orders what went long enough ago, answered or not, and orphans that were found so long ago.
func (w *race) orderDeletions() bool {
	s := w.anyServer()
	var ids []chunk.ID
	w.view(func(r kv.Reader) {
		ids = namespace.Deletions(r, s.id, w.clock-raceGrace, 1+w.rng.IntN(10))
		if o := w.lead.orphans[s.id]; w.clock-o.at >= raceGrace {
			for _, id := range o.ids {
				if isOrphan(r, s.id, id) {
					ids = append(ids, id)
				}
			}
			delete(w.lead.orphans, s.id)
		}
	})
	return len(ids) > 0 && w.order(s.id, raceOrder{delete: ids})
}

func (w *race) list() bool {
	s := w.anyServer()
	s.inventory = nil
	for id := range s.holds {
		s.inventory = append(s.inventory, id)
	}
	return s.term == w.lead.term && len(s.inventory) > 0
}

func (w *race) judge() bool {
	s := w.anyServer()
	if s.inventory == nil || s.term != w.lead.term {
		return false
	}
	o := raceOrphans{at: w.clock}
	w.view(func(r kv.Reader) {
		for _, id := range s.inventory {
			if isOrphan(r, s.id, id) {
				o.ids = append(o.ids, id)
			}
		}
	})
	s.inventory = nil
	w.lead.orphans[s.id] = o
	return true
}

// Chunk servers.

// connect makes a server obey the leader by a new stream. What was ordered before and it has not begun is dropped; what is
// still on its way on the old stream may arrive any time, and counts no more.
func (w *race) connect() bool {
	s := w.anyServer()
	if s.term == w.lead.term && w.rng.IntN(60) > 0 {
		return false
	}
	s.stale = append(s.stale, s.inbox...)
	s.stream++
	s.term, s.inbox, s.deleting, s.copies, s.inventory = w.lead.term, nil, nil, nil, nil
	return true
}

func (w *race) receive() bool {
	s := w.anyServer()
	from := &s.inbox
	if w.rng.IntN(3) == 0 {
		from = &s.stale
	}
	if len(*from) == 0 {
		return false
	}
	o := (*from)[0]
	*from = (*from)[1:]
	if o.stream == s.stream {
		w.obey(s, o)
	}
	return true
}

func (w *race) obey(s *raceServer, o raceOrder) {
	for _, id := range o.delete {
		if !slices.Contains(s.deleting, id) {
			s.deleting = append(s.deleting, id)
		}
	}
	if o.copy != nil {
		known := func(c *raceCopy) bool { return c.Stored == o.copy.Stored }
		if !slices.ContainsFunc(s.copies, known) && !slices.ContainsFunc(s.running, known) {
			s.copies = append(s.copies, &raceCopy{o.copy, slices.Contains(s.deleting, chunk.ID(o.copy.Stored))})
		}
	}
}

func (w *race) delete() bool {
	s := w.anyServer()
	if len(s.deleting) == 0 {
		return false
	}
	gone := func(c *raceCopy) bool { return slices.Contains(s.deleting, chunk.ID(c.Stored)) }
	s.running = slices.DeleteFunc(s.running, gone)
	s.copies = slices.DeleteFunc(s.copies, func(c *raceCopy) bool { return gone(c) && !c.again })
	s.outbox = slices.DeleteFunc(s.outbox, func(r raceReport) bool { return r.made != 0 && slices.Contains(s.deleting, r.made) })
	for _, id := range s.deleting {
		delete(s.holds, id)
	}
	s.outbox = append(s.outbox, raceReport{term: s.term, deleted: s.deleting})
	s.deleting = nil
	return true
}

func (w *race) beginCopy() bool {
	s := w.anyServer()
	i := slices.IndexFunc(s.copies, func(c *raceCopy) bool { return !slices.Contains(s.deleting, chunk.ID(c.Stored)) })
	if i < 0 {
		return false
	}
	s.running = append(s.running, s.copies[i])
	s.copies = slices.Delete(s.copies, i, i+1)
	return true
}

// endCopy makes a shard if enough of its sources are still there.
func (w *race) endCopy() bool {
	s := w.anyServer()
	if len(s.running) == 0 {
		return false
	}
	c := s.running[0]
	s.running = s.running[1:]
	sources := c.Sources
	if c.Source != nil {
		sources = append(sources, c.Source)
	}
	rep := raceReport{term: s.term, made: chunk.ID(c.Stored)}
	for _, src := range sources {
		l := chunk.LayoutOf(src.Layout)
		good := 0
		for shard, id := range src.Servers {
			if f := w.servers[chunk.ServerID(id)]; f != nil && f.holds[chunk.ID(src.Id).Stored(l, shard)] >= l.ShardLength(src.Length) {
				good++
			}
		}
		rep.failed = rep.failed || good < l.Data
	}
	if !rep.failed {
		s.holds[rep.made] = c.Length
	}
	s.outbox = append(s.outbox, rep)
	return true
}

// report brings a server's answer to the leader that it is connected to, if that leads still.
func (w *race) report() bool {
	s := w.anyServer()
	if len(s.outbox) == 0 {
		return false
	}
	rep := s.outbox[0]
	s.outbox = s.outbox[1:]
	if s.term != w.lead.term || w.rng.IntN(10) == 0 {
		return true // lost
	}
	if rep.made == 0 {
		op := &pb.FinishDeletions{Server: uint32(s.id)}
		for _, id := range rep.deleted {
			op.Chunks = append(op.Chunks, uint64(id))
		}
		w.own(&pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: op}})
		return true
	}
	if j := w.lead.rewrites[rep.made.Chunk()]; j != nil {
		for shard, stored := range j.stored {
			if stored == rep.made && j.server[shard] == uint32(s.id) {
				j.made[shard] = !rep.failed
			}
		}
	}
	for _, key := range sorted(w.lead.moves) {
		m := w.lead.moves[key]
		mine := false
		w.view(func(r kv.Reader) {
			c, ok := namespace.Chunk(r, chunk.ID(m.Chunk))
			mine = ok && m.Server == uint32(s.id) && c.Stored(int(m.Shard)) == rep.made
		})
		if mine {
			w.endMove(m, !rep.failed)
		}
	}
	return true
}
