package namespace

import (
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// Check reads the whole state and says, a line each, where it breaks the rules that doc.go lists: nil when it is sound.
// It holds a few words for each inode and chunk in memory.
func Check(r kv.Reader) []string {
	if r.Get(bState, countersKey) == nil && r.Get(bState, clusterKey) == nil {
		return nil // no cluster yet
	}
	c := &checker{r: r, inodes: map[uint64]*checkedInode{}, chunks: map[chunk.ID]*checkedChunk{}}
	var err error
	if c.want, err = decodeCounters(r.Get(bState, countersKey)); err != nil {
		c.report("%v", damaged(bState, countersKey))
	}
	if n := len(r.Get(bState, clusterKey)); n != idSize {
		c.report("the cluster's id has %d bytes", n)
	}
	// Each reads what those before it gathered.
	for _, part := range []func(){c.readInodes, c.readDentries, c.readXattrs, c.readChunks, c.readExtents, c.readSessions, c.readOrphans,
		c.readServers, c.readCopies, c.readDeletions, c.checkInodes, c.checkChunks, c.checkCounters} {
		part()
	}
	return c.problems
}

// maxProblems bounds what Check returns.
const maxProblems = 1000

type checker struct {
	r        kv.Reader
	want     counters
	have     counters
	inodes   map[uint64]*checkedInode
	chunks   map[chunk.ID]*checkedChunk
	problems []string
}

type checkedInode struct {
	*inode
	names, subdirs, entries uint64
	parentName              uint64 // the directory that names it
	chunkBytes, xattrBytes  uint64
	holders                 int
	inlineBytes             uint64
}

type checkedChunk struct {
	*ChunkRecord
	live          uint64
	copies, owned int
	indexed       bool // as degraded
}

func (c *checker) report(format string, args ...any) {
	switch len(c.problems) {
	case maxProblems:
	case maxProblems - 1:
		c.problems = append(c.problems, "and more")
	default:
		c.problems = append(c.problems, fmt.Sprintf(format, args...))
	}
}

// each calls fn for every record of a bucket whose key has the right length (0: at least 9 bytes, an inode and a name).
func (c *checker) each(b kv.Bucket, size int, fn func(k, v []byte) error) {
	c.r.Scan(b, nil, func(k, v []byte) bool {
		if size == 0 && len(k) < 9 || size != 0 && len(k) != size {
			c.report("%s: a key of %d bytes: %x", bucketName(b), len(k), k)
		} else if err := fn(k, v); err != nil {
			c.report("%v", damaged(b, k))
		}
		return true
	})
}

func (c *checker) readInodes() {
	c.each(bInode, 8, func(k, v []byte) error {
		num := binary.BigEndian.Uint64(k)
		// The record outlives this call of fn, whose value need not.
		in, err := decodeInode(num, slices.Clone(v))
		if err != nil {
			return err
		}
		c.have.inodes++
		ci := &checkedInode{inode: in, inlineBytes: in.inlineBytes()}
		c.have.inline += ci.inlineBytes
		c.inodes[num] = ci
		if num == 0 || num >= c.want.nextInode {
			c.report("inode %d: the next new one is %d", num, c.want.nextInode)
		}
		if in.typ() == syscall.S_IFLNK && uint64(len(in.symlink)) != in.size {
			c.report("inode %d: a symlink of %d bytes whose target has %d", num, in.size, len(in.symlink))
		}
		if n := len(in.inline); n > 0 && (!in.isFile() || in.inline[n-1].end() > in.size) {
			c.report("inode %d: inline data beyond its %d bytes", num, in.size)
		}
		in.inline, in.symlink = nil, nil
		return nil
	})
	if root := c.inodes[posix.RootInode]; root == nil || !root.isDir() || root.parent != posix.RootInode {
		c.report("there is no root directory")
	}
}

func (c *checker) readDentries() {
	c.each(bDentry, 0, func(k, v []byte) error {
		num, typ, err := decodeDentry(v)
		if err != nil {
			return err
		}
		parent, name := binary.BigEndian.Uint64(k), k[8:]
		if err := posix.CheckName(name); err != nil {
			c.report("directory %d: %v", parent, err)
		}
		dir, in := c.inodes[parent], c.inodes[num]
		if dir == nil || !dir.isDir() {
			c.report("directory %d, which does not exist, has an entry %q", parent, name)
			return nil
		}
		dir.entries++
		if in == nil {
			c.report("directory %d: %q is inode %d, which does not exist", parent, name, num)
			return nil
		}
		in.names++
		in.parentName = parent
		if in.typ() != typ {
			c.report("directory %d: %q has type %#o, its inode %d mode %#o", parent, name, typ, num, in.mode)
		}
		if in.isDir() {
			dir.subdirs++
		}
		return nil
	})
}

func (c *checker) readXattrs() {
	c.each(bXattr, 0, func(k, v []byte) error {
		value, err := decodeXattr(v)
		if err != nil {
			return err
		}
		if in := c.inodes[binary.BigEndian.Uint64(k)]; in != nil {
			in.xattrBytes += uint64(len(k) - 8 + len(value))
		} else {
			c.report("an xattr of an inode that does not exist: %x", k)
		}
		return nil
	})
}

func (c *checker) readChunks() {
	c.each(bChunk, 8, func(k, v []byte) error {
		id := chunk.ID(binary.BigEndian.Uint64(k))
		rec, err := decodeChunk(id, v)
		if err != nil {
			return err
		}
		c.have.chunks++
		c.have.live += rec.Live
		c.chunks[id] = &checkedChunk{ChunkRecord: rec}
		if id == 0 || uint64(id) >= c.want.nextChunk {
			c.report("chunk %v: the next new one is %v", id, chunk.ID(c.want.nextChunk))
		}
		return nil
	})
}

func (c *checker) readExtents() {
	c.each(bExtent, 16, func(k, v []byte) error {
		num, number := binary.BigEndian.Uint64(k), binary.BigEndian.Uint64(k[8:])
		b, err := parseBlock(number, v)
		if err != nil {
			return err
		}
		list, err := b.pieces(0, b.count())
		if err != nil {
			return err
		}
		in := c.inodes[num]
		if in == nil || !in.isFile() {
			c.report("extents of inode %d, which is not a file", num)
			return nil
		}
		if end := list[len(list)-1].end(); end > in.size {
			c.report("inode %d: an extent ends at %d, the file at %d", num, end, in.size)
		}
		for _, p := range list {
			in.chunkBytes += p.len
			ch := c.chunks[p.chunk]
			if ch == nil {
				c.report("inode %d: an extent at %d in chunk %v, which does not exist", num, p.off, p.chunk)
				continue
			}
			ch.live += p.len
			if p.coff+p.len > ch.Length {
				c.report("inode %d: an extent at %d to %d of chunk %v, which has %d bytes", num, p.off, p.coff+p.len, p.chunk, ch.Length)
			}
		}
		return nil
	})
}

func (c *checker) readSessions() {
	c.each(bSession, 8, func(k, v []byte) error {
		id := binary.BigEndian.Uint64(k)
		s, err := decodeSession(id, v)
		if err != nil {
			return err
		}
		c.have.sessions++
		if id == 0 || id >= c.want.nextSession {
			c.report("session %d: the next new one is %d", id, c.want.nextSession)
		}
		if v := c.r.Get(bNonce, s.Nonce); len(v) != 9 || binary.BigEndian.Uint64(v[1:]) != id {
			c.report("session %d cannot be found by its nonce", id)
		}
		if !HasSession(c.r, id) {
			c.report("session %d has no window of results", id)
		}
		if n := len(numbersUnder(c.r, bOwned, id)); n != int(s.Owned) {
			c.report("session %d writes %d chunks, its record says %d", id, n, s.Owned)
		}
		return nil
	})
	nonces := uint64(0)
	c.each(bNonce, nonceSize, func(_, _ []byte) error { nonces++; return nil })
	if nonces != c.have.sessions {
		c.report("%d nonces of %d sessions", nonces, c.have.sessions)
	}
	c.each(bOwned, 16, func(k, _ []byte) error {
		session, id := binary.BigEndian.Uint64(k), chunk.ID(binary.BigEndian.Uint64(k[8:]))
		if ch := c.chunks[id]; ch == nil || ch.Owner != session {
			c.report("session %d does not write chunk %v, as the index of such chunks says", session, id)
		} else {
			ch.owned++
		}
		return nil
	})
	c.readResults()
}

func (c *checker) readResults() {
	var w window
	c.each(bResult, 16, func(k, v []byte) (err error) {
		session, sequence := binary.BigEndian.Uint64(k), binary.BigEndian.Uint64(k[8:])
		if sequence == 0 {
			w, err = decodeWindow(v)
			if c.r.Get(bSession, key8(session)) == nil {
				c.report("results of session %d, which does not exist", session)
			}
			return err
		}
		if !HasSession(c.r, session) || sequence < uint64(w) || sequence-uint64(w) > maxWindow {
			c.report("session %d: a result of %d outside of the window from %d", session, sequence, w)
		}
		return proto.Unmarshal(v, new(pb.Result))
	})
}

func (c *checker) readOrphans() {
	for _, b := range []kv.Bucket{bOrphan, bHeld} {
		other := bOrphan + bHeld - b
		c.each(b, 16, func(k, _ []byte) error {
			first, second := binary.BigEndian.Uint64(k), binary.BigEndian.Uint64(k[8:])
			if c.r.Get(other, key16(second, first)) == nil {
				c.report("%s %x has no counterpart", bucketName(b), k)
			}
			if b == bHeld {
				return nil
			}
			if in := c.inodes[first]; in == nil || in.nlink != 0 {
				c.report("inode %d is held as unlinked, but is not", first)
			} else {
				in.holders++
			}
			if !HasSession(c.r, second) {
				c.report("inode %d is held for session %d, which does not exist", first, second)
			}
			return nil
		})
	}
}

func (c *checker) readServers() {
	c.each(bServer, 4, func(k, v []byte) error {
		id := chunk.ServerID(binary.BigEndian.Uint32(k))
		s, err := decodeServer(id, v)
		if err != nil {
			return err
		}
		c.have.servers++
		if id == 0 || uint32(id) >= c.want.nextServer {
			c.report("server %d: the next new one is %d", id, c.want.nextServer)
		}
		if v := c.r.Get(bServerUUID, s.UUID); len(v) != 5 || binary.BigEndian.Uint32(v[1:]) != uint32(id) {
			c.report("server %d cannot be found by its uuid", id)
		}
		return nil
	})
}

func (c *checker) readCopies() {
	c.each(bServerChunk, 12, func(k, _ []byte) error {
		server, stored := chunk.ServerID(binary.BigEndian.Uint32(k)), chunk.ID(binary.BigEndian.Uint64(k[4:]))
		if ch := c.chunks[stored.Chunk()]; ch == nil || !ch.BelongsOn(server, stored) {
			c.report("server %d: nothing of chunk %v belongs there, as the index of copies says", server, stored)
		} else {
			ch.copies++
		}
		return nil
	})
	c.each(bDegraded, 8, func(k, _ []byte) error {
		id := chunk.ID(binary.BigEndian.Uint64(k))
		if ch := c.chunks[id]; ch == nil {
			c.report("chunk %v is in the index of degraded ones, but does not exist", id)
		} else {
			ch.indexed = true
		}
		return nil
	})
}

func (c *checker) readDeletions() {
	c.each(bDeletion, 20, func(k, _ []byte) error {
		server, id := chunk.ServerID(binary.BigEndian.Uint32(k)), chunk.ID(binary.BigEndian.Uint64(k[12:]))
		c.have.deletions++
		v := c.r.Get(bDeletionIndex, serverChunkKey(server, id))
		if len(v) != 9 || !slices.Equal(v[1:], k[4:12]) {
			c.report("the deletion of chunk %v on server %d is not in its index", id, server)
		}
		if c.r.Get(bServerChunk, serverChunkKey(server, id)) != nil {
			c.report("chunk %v is to be deleted on server %d, where it belongs", id, server)
		}
		return nil
	})
	n := uint64(0)
	c.each(bDeletionIndex, 12, func(_, _ []byte) error { n++; return nil })
	if n != c.have.deletions {
		c.report("%d deletions, %d in their index", c.have.deletions, n)
	}
}

func (c *checker) checkInodes() {
	for _, num := range sortedKeys(c.inodes) {
		in := c.inodes[num]
		links := in.names
		if in.isDir() && (in.nlink > 0 || in.names > 0) {
			links = 2 + in.subdirs
			if num != posix.RootInode && (in.names != 1 || in.parent != in.parentName) {
				c.report("directory %d has %d names, the last one in %d, its parent is %d", num, in.names, in.parentName, in.parent)
			}
		}
		if uint64(in.nlink) != links {
			c.report("inode %d has %d links, by its names %d", num, in.nlink, links)
		}
		if in.nlink == 0 && in.holders == 0 {
			c.report("inode %d has no name and nobody holds it", num)
		}
		if in.isDir() && in.size != in.entries {
			c.report("directory %d has %d entries, its size is %d", num, in.entries, in.size)
		}
		if in.allocated != in.chunkBytes+in.inlineBytes {
			c.report("inode %d: extents have %d bytes, %d are recorded", num, in.chunkBytes+in.inlineBytes, in.allocated)
		}
		if uint64(in.inode.xattrBytes) != in.xattrBytes {
			c.report("inode %d: xattrs have %d bytes, %d are recorded", num, in.xattrBytes, in.inode.xattrBytes)
		}
	}
	c.checkReachable()
}

// checkReachable follows every directory to the root.
func (c *checker) checkReachable() {
	sound := map[uint64]bool{posix.RootInode: true}
	for _, num := range sortedKeys(c.inodes) {
		var path []uint64
		at := num
		for in := c.inodes[at]; in != nil && in.isDir() && in.nlink > 0 && !sound[at]; in = c.inodes[at] {
			sound[at] = true // or the walk would not end in a loop
			path = append(path, at)
			at = in.parent
			if slices.Contains(path, at) {
				c.report("directory %d is its own ancestor", at)
				break
			}
		}
		if len(path) > 0 && c.inodes[at] == nil {
			c.report("directory %d lies below %d, which does not exist", num, at)
		}
	}
}

func (c *checker) checkChunks() {
	for _, id := range sortedKeys(c.chunks) {
		ch := c.chunks[id]
		if ch.live != ch.Live {
			c.report("chunk %v: extents have %d bytes of it, %d are recorded", id, ch.live, ch.Live)
		}
		if ch.Owner == 0 && ch.Live == 0 {
			c.report("chunk %v is garbage, but was not deleted", id)
		}
		if owned := min(ch.Owner, 1); uint64(ch.owned) != owned {
			c.report("chunk %v: owner %d, %d in the index of written chunks", id, ch.Owner, ch.owned)
		}
		if ch.indexed != ch.degraded() {
			c.report("chunk %v: %d of %d shards are whole, %d on the move; in the index of degraded ones: %t", id, ch.Holders(), ch.Layout.Width(), len(ch.Moves), ch.indexed)
		}
		c.checkShards(ch)
	}
}

func (c *checker) checkShards(ch *checkedChunk) {
	places := 0
	seen := map[chunk.ServerID]bool{}
	ch.Copies(func(s chunk.ServerID, stored chunk.ID) {
		places++
		if seen[s] {
			c.report("chunk %v: server %d is there twice", ch.ID, s)
		}
		seen[s] = true
		if c.r.Get(bServer, serverKey(s)) == nil {
			c.report("chunk %v: server %d does not exist", ch.ID, s)
		}
	})
	if places != ch.copies {
		c.report("chunk %v: is in %d places, %d are in their index", ch.ID, places, ch.copies)
	}
	if ch.Owner != 0 && len(ch.Moves) > 0 {
		c.report("chunk %v is being written, and moved", ch.ID)
	}
	for i, m := range ch.Moves {
		if slices.ContainsFunc(ch.Moves[:i], func(o Move) bool { return o.Shard == m.Shard }) {
			c.report("chunk %v: shard %d is made twice", ch.ID, m.Shard)
		}
	}
}

func (c *checker) checkCounters() {
	for _, n := range []struct {
		what       string
		have, want uint64
	}{
		{"inodes", c.have.inodes, c.want.inodes}, {"chunks", c.have.chunks, c.want.chunks}, {"live bytes", c.have.live, c.want.live},
		{"inline bytes", c.have.inline, c.want.inline}, {"deletions", c.have.deletions, c.want.deletions},
		{"sessions", c.have.sessions, c.want.sessions}, {"servers", c.have.servers, c.want.servers},
	} {
		if n.have != n.want {
			c.report("there are %d %s, %d are recorded", n.have, n.what, n.want)
		}
	}
}

func sortedKeys[K ~uint64, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
