package namespace

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func (c *checker) readServers() {
	c.begin("servers", c.want.servers)
	c.each(bServer, 4, func(k []byte) {
		if len(k) == 4 {
			c.have.servers++
			c.servers[chunk.ServerID(keyNumber(k))] = true
		}
	}, func(k, v []byte) error {
		id := chunk.ServerID(binary.BigEndian.Uint32(k))
		s, err := decodeServer(id, v)
		if err != nil {
			return err
		}
		c.have.servers++
		c.servers[id] = true
		c.numbered(bServer, k, uint64(id), uint64(c.want.nextServer), "server")
		if v := c.r.Get(bServerUUID, s.UUID); len(v) != 5 || binary.BigEndian.Uint32(v[1:]) != uint32(id) {
			c.broken(stageIndexes, indexFix(bServerUUID, s.UUID, uint64(id)), "server %d cannot be found by its uuid", id)
		}
		return nil
	})
}

func (c *checker) readServerUUIDs() {
	c.each(bServerUUID, idSize, nil, func(k, v []byte) error {
		if len(v) != 5 || v[0] != formatVersion {
			c.broken(stageIndexes, indexFix(bServerUUID, k, 0), "uuid %x leads to no server", k)
			return nil
		}
		id := chunk.ServerID(binary.BigEndian.Uint32(v[1:]))
		s, err := getServer(c.r, id)
		switch {
		case err != nil:
		case s == nil:
			// Its number must not be forgotten: it has data under it, and is registered again when it starts. So it counts.
			c.have.servers++
			c.report("server %d has a uuid, %x, but is not registered; start it again if it still exists", id, k)
		case string(s.UUID) != string(k):
			c.broken(stageIndexes, indexFix(bServerUUID, k, uint64(id)), "uuid %x leads to server %d, which has another", k, id)
		}
		return nil
	})
}

func (c *checker) readChunks() {
	c.begin("chunks", c.want.chunks)
	c.each(bChunk, 8, func(k []byte) {
		c.blind.chunks = true
		if len(k) == 8 {
			c.have.chunks++
			c.chunks = append(c.chunks, chunkFacts{id: chunk.ID(keyNumber(k)), damaged: true})
		}
	}, func(k, v []byte) error {
		id := chunk.ID(binary.BigEndian.Uint64(k))
		rec, err := decodeChunk(id, v)
		if err != nil {
			return err
		}
		c.have.chunks++
		c.have.live += rec.Live
		if keeper := rec.Keeper(); keeper != 0 {
			c.owners[keeper]++
		}
		places := 0
		distinct(rec, func(chunk.ServerID, chunk.ID) { places++ })
		c.chunks = append(c.chunks, chunkFacts{id: id, live: rec.Live, keeper: rec.Keeper(), length: uint32(rec.Length), places: uint8(places), degraded: rec.degraded()})
		c.numbered(bChunk, k, uint64(id), c.want.nextChunk, "chunk")
		c.checkShards(rec)
		return nil
	})
}

// distinct is Copies, each place once: in a record that is damaged, several shards may be in one.
func distinct(rec *ChunkRecord, fn func(chunk.ServerID, chunk.ID)) {
	type place struct {
		server chunk.ServerID
		stored chunk.ID
	}
	var buf [8]place
	seen := buf[:0]
	rec.Copies(func(s chunk.ServerID, stored chunk.ID) {
		if p := (place{s, stored}); !slices.Contains(seen, p) {
			seen = append(seen, p)
			fn(s, stored)
		}
	})
}

// checkShards checks where a chunk's shards are.
func (c *checker) checkShards(rec *ChunkRecord) {
	fix := &pb.StateFix{Kind: pb.StateFix_CHUNK, Id: uint64(rec.ID)}
	for i, s := range rec.Servers {
		if s != 0 && slices.Contains(rec.Servers[:i], s) {
			c.hopeless("chunk %v: server %d has two of its shards", rec.ID, s)
		}
		if s != 0 && !c.servers[s] {
			c.report("chunk %v: shard %d is on server %d, which is not registered; start that server again if it still exists", rec.ID, i, s)
		}
	}
	if rec.Length == 0 && bits.OnesCount32(rec.Held) > 0 {
		c.hopeless("chunk %v is empty, but %d of its shards are whole", rec.ID, rec.Holders())
	}
	if rec.Owner != 0 && !ownerExists(c.r, rec.Owner) {
		c.broken(stageRecords, fix, "chunk %v is written by session %d, which does not exist", rec.ID, rec.Owner)
	}
	if rec.Writer != 0 && !sessionExists(c.r, rec.Writer) {
		c.broken(stageRecords, fix, "chunk %v is kept for session %d, which does not exist", rec.ID, rec.Writer)
	}
	for k := range rec.Moves {
		if why := rec.badMove(k, func(s chunk.ServerID) bool { return c.servers[s] }); why != "" {
			m := rec.Moves[k]
			c.broken(stageRecords, fix, "chunk %v: shard %d is on its way to server %d, %s", rec.ID, m.Shard, m.Server, why)
		}
	}
}

// badMove says why a move cannot be, empty when it can.
func (c *ChunkRecord) badMove(k int, registered func(chunk.ServerID) bool) string {
	m := c.Moves[k]
	switch {
	case !registered(m.Server):
		return "which is not registered"
	case c.Owner != 0:
		return "while it is being written"
	case c.Length == 0:
		return "though there is nothing in it"
	case slices.ContainsFunc(c.Moves[:k], func(o Move) bool { return o.Shard == m.Shard }):
		return "and to another one"
	case slices.ContainsFunc(c.Moves[:k], func(o Move) bool { return o.Server == m.Server }):
		return "to which another shard is, too"
	}
	for shard, s := range c.Servers {
		if s == m.Server && shard != m.Shard {
			return "which has another shard"
		}
	}
	return ""
}

func (c *checker) readExtents() {
	c.begin("extents", 0)
	var ch *chunkFacts // of the extent before: those of a chunk come together
	c.each(bExtent, 16, func(k []byte) {
		c.blind.extents = true
		if len(k) == 16 {
			if in := c.inode(keyNumber(k[:8])); in != nil {
				in.partial = true
			} else {
				c.lacks(keyNumber(k[:8])).mixed = true
			}
		}
	}, func(k, v []byte) error {
		num, number := binary.BigEndian.Uint64(k), binary.BigEndian.Uint64(k[8:])
		b, err := parseBlock(number, v)
		if err != nil {
			return err
		}
		list, err := b.pieces(0, b.count())
		if err != nil {
			return err
		}
		in := c.inode(num)
		end := list[len(list)-1].end()
		switch {
		case in == nil, in.damaged:
		case in.typ != fileType:
			c.hopeless("extents of inode %d, which is not a file", num)
		case end > in.size:
			c.hopeless("inode %d: an extent ends at %d, the file at %d", num, end, in.size)
		}
		for i := range list {
			p := &list[i]
			if in != nil {
				in.bytes += p.len
			} else {
				m := c.lacks(num)
				m.bytes += p.len
				m.end = max(m.end, end)
			}
			if ch == nil || ch.id != p.chunk {
				ch = c.chunk(p.chunk)
			}
			c.refer(num, p, ch)
		}
		return nil
	})
}

// refer counts an extent's bytes in its chunk.
func (c *checker) refer(num uint64, p *piece, ch *chunkFacts) {
	switch {
	case ch == nil:
		c.hopeless("inode %d: an extent at %d in chunk %v, which does not exist", num, p.off, p.chunk)
		c.wanted[p.chunk] = true
		return
	case !ch.damaged && p.coff+p.len > uint64(ch.length):
		c.hopeless("inode %d: an extent at %d to %d of chunk %v, which has %d bytes", num, p.off, p.coff+p.len, p.chunk, ch.length)
	}
	ch.used += p.len
}

func (c *checker) readCopies() {
	c.begin("shards", 0)
	c.each(bServerChunk, 12, nil, func(k, _ []byte) error {
		server, stored := chunk.ServerID(binary.BigEndian.Uint32(k)), chunk.ID(binary.BigEndian.Uint64(k[4:]))
		ch := c.chunk(stored.Chunk())
		if ch != nil && ch.damaged {
			return nil
		}
		c.out.Shards++
		rec, err := getChunk(c.r, stored.Chunk())
		switch {
		case err == nil && rec != nil && rec.BelongsOn(server, stored):
			ch.indexed++
		case c.wanted[stored.Chunk()]:
			// The index is what keeps the server from taking its data for an orphan.
			c.report("server %d has something of chunk %v, which does not exist though files refer to it; it is kept"+hopeless, server, stored)
		default:
			c.broken(stageIndexes, indexFix(bServerChunk, k, 0), "server %d: nothing of chunk %v belongs there, as the index of copies says", server, stored)
		}
		return nil
	})
}

func (c *checker) readDegraded() {
	c.each(bDegraded, 8, nil, func(k, _ []byte) error {
		id := chunk.ID(binary.BigEndian.Uint64(k))
		switch ch := c.chunk(id); {
		case ch == nil:
			c.broken(stageIndexes, indexFix(bDegraded, k, 0), "chunk %v is in the index of degraded ones, but does not exist", id)
		case ch.damaged:
		case !ch.degraded:
			c.broken(stageIndexes, indexFix(bDegraded, k, 0), "chunk %v is in the index of degraded ones, but is not", id)
		default:
			ch.inDegraded = true
		}
		return nil
	})
}

func (c *checker) readDeletions() {
	c.begin("deletions", c.want.deletions)
	c.each(bDeletion, 20, nil, func(k, _ []byte) error {
		server, id := chunk.ServerID(binary.BigEndian.Uint32(k)), chunk.ID(binary.BigEndian.Uint64(k[12:]))
		c.have.deletions++
		fix := indexFix(bDeletion, k, 0)
		v := c.r.Get(bDeletionIndex, serverChunkKey(server, id))
		switch {
		case c.r.Get(bServerChunk, serverChunkKey(server, id)) != nil:
			c.broken(stageIndexes, fix, "chunk %v is to be deleted on server %d, where it belongs", id, server)
		case !c.servers[server]:
			c.broken(stageIndexes, fix, "chunk %v is to be deleted on server %d, which is not registered", id, server)
		case len(v) != 9 || !slices.Equal(v[1:], k[4:12]):
			c.broken(stageIndexes, fix, "the deletion of chunk %v on server %d is not in its index", id, server)
		}
		return nil
	})
	c.each(bDeletionIndex, 12, nil, func(k, v []byte) error {
		if len(v) != 9 || v[0] != formatVersion || c.r.Get(bDeletion, deletionOf(k, v)) == nil {
			c.broken(stageIndexes, indexFix(bDeletionIndex, k, 0), "chunk %v on server %d is in the index of deletions, but not to be deleted",
				chunk.ID(keyNumber(k[4:])), keyNumber(k[:4]))
		}
		return nil
	})
}

// deletionOf is the key of the deletion that a record of the index leads to.
func deletionOf(k, v []byte) []byte { return slices.Concat(k[:4], v[1:9], k[4:]) }

func (c *checker) checkChunks() {
	c.begin("redundancy", c.have.chunks)
	for i := range c.chunks {
		if c.done++; c.done%progressEvery == 0 {
			if c.progress(); c.err != nil {
				return
			}
		}
		ch := &c.chunks[i]
		if ch.damaged {
			continue
		}
		c.checkLive(ch)
		if ch.keeper != 0 && !ch.owned && ownerExists(c.r, ch.keeper) {
			c.broken(stageIndexes, indexFix(bOwned, key16(ch.keeper, uint64(ch.id)), 0), "chunk %v, written by session %d, is not in the index of such", ch.id, ch.keeper)
		}
		if ch.degraded && !ch.inDegraded {
			c.broken(stageIndexes, indexFix(bDegraded, key8(uint64(ch.id)), 0), "chunk %v lacks shards, or has some on the move, but is not in the index of such", ch.id)
		}
		if ch.indexed < ch.places {
			c.unindexed(ch.id)
		}
	}
}

// checkLive checks the bytes of a chunk that files refer to. Where some extents could not be read they are a lower bound.
func (c *checker) checkLive(ch *chunkFacts) {
	switch {
	case ch.used == ch.live && (ch.keeper != 0 || ch.live > 0):
	case ch.used < ch.live && c.losses:
		c.hopeless("chunk %v: %d bytes of it are recorded as live, extents have %d"+seemLost, ch.id, ch.live, ch.used)
	case ch.used <= ch.live && c.blind.extents:
		c.hopeless("chunk %v: the extents that can be read have %d bytes of it, %d are recorded", ch.id, ch.used, ch.live)
	case ch.used == ch.live:
		c.broken(stageRecords, &pb.StateFix{Kind: pb.StateFix_GARBAGE, Id: uint64(ch.id)}, "chunk %v is garbage, but was not deleted", ch.id)
	default:
		c.broken(stageSums, addFix(pb.StateFix_CHUNK_LIVE, uint64(ch.id), ch.used, ch.live), "chunk %v: extents have %d bytes of it, %d are recorded", ch.id, ch.used, ch.live)
	}
}

// unindexed reports the places of a chunk that the index of copies lacks.
func (c *checker) unindexed(id chunk.ID) {
	rec, err := getChunk(c.r, id)
	if err != nil || rec == nil {
		return
	}
	distinct(rec, func(s chunk.ServerID, stored chunk.ID) {
		if key := serverChunkKey(s, stored); c.r.Get(bServerChunk, key) == nil {
			c.broken(stageIndexes, indexFix(bServerChunk, key, 0), "chunk %v: that server %d has %v is not in the index of copies", id, s, stored)
		}
	})
}
