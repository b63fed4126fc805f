package metaserver

import (
	"fmt"
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// raceStep is something that can happen. It tells whether it did.
type raceStep struct {
	name string
	do   func(*race) bool
}

var raceSteps = []raceStep{
	{"a client takes a chunk", (*race).alloc}, {"a client makes a file", (*race).create},
	{"a client writes to servers", (*race).write}, {"a client writes to servers", (*race).write}, {"a client writes to servers", (*race).write},
	{"a commit sets out", (*race).sendCommit}, {"a seal sets out", (*race).sendSeal},
	{"a mutation arrives", (*race).arrive}, {"a mutation arrives", (*race).arrive}, {"a mutation arrives", (*race).arrive},
	{"a file is cut", (*race).truncate},
	{"a session expires", (*race).expire},
	{"a move starts", (*race).startMove}, {"a move starts", (*race).startMove}, {"a copy is ordered for a move", (*race).orderMove}, {"a move is given up", (*race).failMove},
	{"a rewrite starts", (*race).startRewrite}, {"a rewrite starts", (*race).startRewrite}, {"a shard is ordered for a rewrite", (*race).orderRewrite},
	{"a shard is ordered for a rewrite", (*race).orderRewrite}, {"a shard is ordered for a rewrite", (*race).orderRewrite},
	{"a rewrite is finished", (*race).finishRewrite}, {"a rewrite is finished", (*race).finishRewrite}, {"rewrites are dropped", (*race).dropRewrites},
	{"deletions are ordered", (*race).orderDeletions}, {"deletions are ordered", (*race).orderDeletions},
	{"an inventory is listed", (*race).list}, {"an inventory is judged", (*race).judge},
	{"an order arrives", (*race).receive}, {"an order arrives", (*race).receive}, {"an order arrives", (*race).receive},
	{"a server deletes", (*race).delete}, {"a server deletes", (*race).delete},
	{"a server begins a copy", (*race).beginCopy}, {"a server begins a copy", (*race).beginCopy},
	{"a server ends a copy", (*race).endCopy}, {"a server ends a copy", (*race).endCopy},
	{"a report arrives", (*race).report}, {"a report arrives", (*race).report}, {"a report arrives", (*race).report},
	{"a server connects", (*race).connect}, {"a server connects", (*race).connect},
	{"another metaserver leads", func(w *race) bool {
		if w.rng.IntN(60) > 0 {
			return false
		}
		w.newLeader()
		return true
	}},
}

var raceLayouts = []chunk.Layout{chunk.Copies(2), chunk.Copies(3), {Data: 2, Parity: 1, Min: 2, Cell: 512}}

func (w *race) alloc() bool {
	c, _ := pick(w, w.clients)
	l, _ := pick(w, raceLayouts)
	if len(c.chunks) > 3 {
		return false
	}
	c.seq++
	res := w.apply(&pb.Command{Session: c.session, Sequence: c.seq, Unanswered: c.seq, Op: &pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1, Layout: l.Proto(), Candidates: w.candidates()}}}})
	if namespace.IsSessionEnded(res) {
		w.open(c)
		return true
	}
	a := res.Chunks[0]
	c.chunks = append(c.chunks, &raceChunk{id: chunk.ID(a.Id), layout: l, servers: a.Servers, broken: make([]bool, len(a.Servers))})
	return true
}

func (w *race) create() bool {
	if len(w.files) >= 3 {
		return false
	}
	c, _ := pick(w, w.clients)
	c.seq++
	res := w.apply(&pb.Command{Session: c.session, Sequence: c.seq, Unanswered: c.seq, Cred: &pb.Cred{},
		Op: &pb.Op{Op: &pb.Op_MakeNode{MakeNode: &pb.MakeNode{Parent: 1, Name: fmt.Append(nil, w.index), Mode: 0o100644}}}})
	if namespace.IsSessionEnded(res) {
		w.open(c)
		return true
	}
	w.files[res.Attr.Inode] = nil
	return true
}

// write sends bytes of a chunk to its servers; one of them may fail, and gets no more. The client knows nothing of what became
// of the chunk meanwhile.
func (w *race) write() bool {
	c, _ := pick(w, w.clients)
	k, ok := pick(w, c.chunks)
	if !ok || k.length > 4000 {
		return false
	}
	k.length += uint64(k.layout.Padded(1 + w.rng.IntN(30)))
	w.length[k.id] = k.length
	for shard, id := range k.servers {
		s := w.servers[chunk.ServerID(id)]
		stored := k.id.Stored(k.layout, shard)
		if w.rng.IntN(40) == 0 || k.length > uint64(k.layout.Padded(30)) && s.holds[stored] == 0 {
			k.broken[shard] = true
		}
		if !k.broken[shard] {
			s.holds[stored] = k.layout.ShardLength(k.length)
		}
	}
	return true
}

// sendCommit publishes bytes of a chunk, those not published yet or others.
func (w *race) sendCommit() bool {
	c, _ := pick(w, w.clients)
	k, ok := pick(w, c.chunks)
	f, any := pick(w, sorted(w.files))
	if !ok || !any || k.length == 0 {
		return false
	}
	n := min(1+uint64(w.rng.IntN(6)), k.length)
	from, off := uint64(w.rng.IntN(int(k.length-n)+1)), uint64(w.rng.IntN(40))
	cc := &pb.ChunkCommit{Chunk: uint64(k.id), Length: k.length, Servers: make([]uint32, len(k.servers)), Seal: w.rng.IntN(6) == 0}
	for shard, s := range k.servers {
		if !k.broken[shard] {
			cc.Servers[shard] = s
		}
	}
	op := &pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: f, Chunks: []*pb.ChunkCommit{cc}, Extents: []*pb.Extent{{Offset: off, Length: n, Chunk: uint64(k.id), ChunkOffset: from}}}}}
	session := c.session
	c.flying = append(c.flying, func() {
		if errno := w.do(c, session, op); errno != 0 {
			w.refused(c, k, session)
			return
		}
		data := w.files[f]
		for uint64(len(data)) < off+n {
			data = append(data, raceByte{})
		}
		for i := range n {
			data[off+i] = raceByte{k.id, from + i}
		}
		w.files[f] = data
		if cc.Seal {
			w.giveUp(c, k)
		}
	})
	return true
}

func (w *race) giveUp(c *raceClient, k *raceChunk) {
	c.chunks = slices.DeleteFunc(c.chunks, func(o *raceChunk) bool { return o == k })
}

// refused has a client copy what it wrote elsewhere, which may take its time, and give the chunk up after that.
func (w *race) refused(c *raceClient, k *raceChunk, session uint64) {
	c.flying = append(c.flying, func() {
		w.giveUp(c, k)
		w.do(c, session, &pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: []*pb.ChunkCommit{{Chunk: uint64(k.id)}}}}})
	})
}

func (w *race) sendSeal() bool {
	c, _ := pick(w, w.clients)
	k, ok := pick(w, c.chunks)
	if !ok {
		return false
	}
	w.giveUp(c, k)
	session := c.session
	c.flying = append(c.flying, func() {
		w.do(c, session, &pb.Op{Op: &pb.Op_SealChunks{SealChunks: &pb.SealChunks{Chunks: []*pb.ChunkCommit{{Chunk: uint64(k.id)}}}}})
	})
	return true
}

// arrive lets any of a client's mutations reach the log.
func (w *race) arrive() bool {
	c, _ := pick(w, w.clients)
	if len(c.flying) == 0 {
		return false
	}
	i := w.rng.IntN(len(c.flying))
	fn := c.flying[i]
	c.flying = slices.Delete(c.flying, i, i+1)
	fn()
	return true
}

func (w *race) truncate() bool {
	c, _ := pick(w, w.clients)
	f, ok := pick(w, sorted(w.files))
	if ok = ok && w.rng.IntN(15) == 0; ok {
		data, size := w.files[f], uint64(w.rng.IntN(20))
		if w.do(c, c.session, &pb.Op{Op: &pb.Op_SetAttr{SetAttr: &pb.SetAttr{Inode: f, Size: &size}}}) == 0 {
			for uint64(len(data)) < size {
				data = append(data, raceByte{})
			}
			w.files[f] = data[:size]
		}
	}
	return ok
}

func (w *race) expire() bool {
	if w.rng.IntN(30) > 0 {
		return false
	}
	c, _ := pick(w, w.clients)
	w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{c.session}}}})
	return true
}

// Repair.

func (w *race) startMove() bool {
	c := w.anyChunk(func(c *namespace.ChunkRecord) bool { return c.Owner == 0 || w.rng.IntN(8) == 0 })
	if c == nil {
		return false
	}
	m := &pb.Move{Chunk: uint64(c.ID), Shard: uint32(w.rng.IntN(c.Layout.Width())), Server: uint32(w.anyServer().id)}
	res := w.own(&pb.Op{Op: &pb.Op_StartMoves{StartMoves: &pb.StartMoves{Moves: []*pb.Move{m}, Keep: true}}})
	for _, m := range res.Moves {
		w.lead.moves[m.String()] = m
	}
	return len(res.Moves) > 0
}

// orderMove orders what the state has on the move, be it that another leader started it.
func (w *race) orderMove() bool {
	c := w.anyChunk(func(c *namespace.ChunkRecord) bool { return len(c.Moves) > 0 })
	if c == nil {
		return false
	}
	m, _ := pick(w, c.Moves)
	p := &pb.Move{Chunk: uint64(c.ID), Shard: uint32(m.Shard), Server: uint32(m.Server)}
	w.lead.moves[p.String()] = p
	o := &pb.CopyOrder{Stored: uint64(c.Stored(m.Shard)), Layout: c.Layout.Proto(), Shard: uint32(m.Shard), Length: c.Layout.ShardLength(c.Length),
		Source: &pb.ChunkInfo{Id: uint64(c.ID), Length: c.Length, Layout: c.Layout.Proto()}}
	for shard, s := range c.Servers {
		if !c.Holds(shard) || s == m.Server {
			s = 0
		}
		o.Source.Servers = append(o.Source.Servers, uint32(s))
	}
	return w.order(m.Server, raceOrder{copy: o})
}

func (w *race) failMove() bool {
	key, ok := pick(w, sorted(w.lead.moves))
	if ok = ok && w.rng.IntN(8) == 0; ok {
		w.endMove(w.lead.moves[key], false)
	}
	return ok
}

func (w *race) endMove(m *pb.Move, done bool) {
	delete(w.lead.moves, m.String())
	op := &pb.FinishMoves{}
	if done {
		op.Done = append(op.Done, m)
	} else {
		op.Failed = append(op.Failed, m)
	}
	w.own(&pb.Op{Op: &pb.Op_FinishMoves{FinishMoves: op}})
}

// Rewriting.

func (w *race) startRewrite() bool {
	op := &pb.FinishRewrite{}
	length := uint64(0)
	w.view(func(r kv.Reader) {
		for _, f := range sorted(w.files) {
			x, err := namespace.Extents(r, f, 0, 0)
			if err != nil || w.rng.IntN(2) == 0 {
				continue
			}
			op.Blocks = append(op.Blocks, &pb.FileBlock{Inode: f})
			for _, e := range x.Extents {
				if w.rng.IntN(2) == 0 {
					continue
				}
				g := &pb.RewriteRange{Chunk: e.Chunk, From: uint32(e.ChunkOffset), To: uint32(e.ChunkOffset + e.Length)}
				c, ok := namespace.Chunk(r, chunk.ID(e.Chunk))
				if !ok || c.Owner != 0 || slices.ContainsFunc(op.Ranges, func(o *pb.RewriteRange) bool { return o.Chunk == g.Chunk && o.From < g.To && g.From < o.To }) {
					continue
				}
				op.Ranges = append(op.Ranges, g)
				length += e.Length
			}
		}
	})
	if length == 0 || len(w.lead.rewrites) >= 3 {
		return false
	}
	l, _ := pick(w, raceLayouts)
	a := w.own(&pb.Op{Op: &pb.Op_StartRewrite{StartRewrite: &pb.StartRewrite{Layout: l.Proto(), Candidates: w.candidates()}}}).Chunks[0]
	id := chunk.ID(a.Id)
	op.Chunk, op.Length, op.Seal = a.Id, uint64(l.Padded(int(length))), true
	w.length[id], w.source[id] = op.Length, op.Ranges
	j := &raceRewrite{layout: l, op: op, server: a.Servers, made: make([]bool, len(a.Servers))}
	for shard := range a.Servers {
		j.stored = append(j.stored, id.Stored(l, shard))
	}
	w.lead.rewrites[id] = j
	return true
}

func (w *race) anyRewrite() *raceRewrite {
	id, _ := pick(w, sorted(w.lead.rewrites))
	return w.lead.rewrites[id]
}

// orderRewrite orders a shard, unless a source is gone.
func (w *race) orderRewrite() bool {
	j := w.anyRewrite()
	if j == nil {
		return false
	}
	shard := w.rng.IntN(len(j.server))
	if j.made[shard] && w.rng.IntN(8) > 0 {
		return false
	}
	o := &pb.CopyOrder{Stored: uint64(j.stored[shard]), Layout: j.layout.Proto(), Shard: uint32(shard), Length: j.layout.ShardLength(j.op.Length)}
	gone := false
	w.view(func(r kv.Reader) {
		for _, g := range j.op.Ranges {
			c, ok := namespace.Chunk(r, chunk.ID(g.Chunk))
			if !ok {
				gone = true
				return
			}
			info := &pb.ChunkInfo{Id: g.Chunk, Length: c.Length, Layout: c.Layout.Proto()}
			for shard, s := range c.Servers {
				if !c.Holds(shard) {
					s = 0
				}
				info.Servers = append(info.Servers, uint32(s))
			}
			o.Sources = append(o.Sources, info)
			o.Ranges = append(o.Ranges, &pb.SourceRange{Source: uint32(len(o.Sources) - 1), From: g.From, To: g.To})
		}
	})
	if gone {
		w.drop(chunk.ID(j.op.Chunk))
		return true
	}
	return w.order(chunk.ServerID(j.server[shard]), raceOrder{copy: o})
}

// finishRewrite publishes a chunk of which enough is made, or a part of it.
func (w *race) finishRewrite() bool {
	j := w.anyRewrite()
	if j == nil {
		return false
	}
	op := &pb.FinishRewrite{Chunk: j.op.Chunk, Length: j.op.Length, Ranges: j.op.Ranges, Blocks: j.op.Blocks, Seal: w.rng.IntN(4) > 0, Servers: make([]uint32, len(j.server))}
	n := 0
	for shard, ok := range j.made {
		if ok {
			op.Servers[shard] = j.server[shard]
			n++
		}
	}
	if n < j.layout.Min {
		return false
	}
	if !op.Seal {
		op.Blocks = op.Blocks[:w.rng.IntN(len(op.Blocks)+1)]
	}
	w.own(&pb.Op{Op: &pb.Op_FinishRewrite{FinishRewrite: op}})
	if op.Seal {
		delete(w.lead.rewrites, chunk.ID(op.Chunk))
	}
	return true
}

// dropRewrites gives up those that the leader knows nothing of, and now and then one that it does.
func (w *race) dropRewrites() bool {
	var ids []chunk.ID
	w.view(func(r kv.Reader) { ids = namespace.Rewrites(r) })
	id, ok := pick(w, ids)
	if !ok || w.lead.rewrites[id] != nil && w.rng.IntN(20) > 0 {
		return false
	}
	w.drop(id)
	return true
}

func (w *race) drop(id chunk.ID) {
	delete(w.lead.rewrites, id)
	w.own(&pb.Op{Op: &pb.Op_DropRewrites{DropRewrites: &pb.DropRewrites{Chunks: []uint64{uint64(id)}}}})
}
