package namespace

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// outcome of a repair.
type outcome int

const (
	asBefore outcome = iota // all is as it was before the damage
	sound                   // there is nothing to complain about
	reported                // nothing was done about it
)

// twice ends the names of cases in which one repair brings the next to light.
const twice = ", in two rounds"

// damages are ways to break a valid state.
var damages = []struct {
	name   string
	damage func(w *sample)
	want   string // in one of the lines
	then   outcome
}{
	{"inode counter", func(w *sample) { w.s.editCounters(func(c *counters) { c.inodes-- }) }, "there are 9 inodes, 8 are recorded", asBefore},
	{"chunk counter", func(w *sample) { w.s.editCounters(func(c *counters) { c.chunks += 7 }) }, "there are 6 chunks, 13", asBefore},
	{"live counter", func(w *sample) { w.s.editCounters(func(c *counters) { c.live = 1 << 63 }) }, "2500 live bytes", asBefore},
	{"inline counter", func(w *sample) { w.s.editCounters(func(c *counters) { c.inline = 0 }) }, "inline bytes, 0 are", asBefore},
	{"deletion counter", func(w *sample) { w.s.editCounters(func(c *counters) { c.deletions++ }) }, "deletions", asBefore},
	{"session counter", func(w *sample) { w.s.editCounters(func(c *counters) { c.sessions = 0 }) }, "2 sessions, 0", asBefore},
	{"server counter", func(w *sample) { w.s.editCounters(func(c *counters) { c.servers = 99 }) }, "4 servers, 99", asBefore},
	{"next inode", func(w *sample) { w.s.editCounters(func(c *counters) { c.nextInode = w.goneDir }) }, "the next new one is", asBefore},
	{"next chunk", func(w *sample) { w.s.editCounters(func(c *counters) { c.nextChunk = 2 }) }, "the next new one is 2", asBefore},
	{"next session", func(w *sample) { w.s.editCounters(func(c *counters) { c.nextSession = 1 }) }, "the next new one is 1", asBefore},
	{"next server", func(w *sample) { w.s.editCounters(func(c *counters) { c.nextServer = 3 }) }, "the next new one is 3", asBefore},

	{"links of a file", func(w *sample) { w.s.editInode(w.file, func(in *inode) { in.nlink = 1 }) }, "has a link count of 1, by its names 2", asBefore},
	{"too many links", func(w *sample) { w.s.editInode(w.link, func(in *inode) { in.nlink = 1 << 31 }) }, "by its names 1", asBefore},
	{"no links", func(w *sample) { w.s.editInode(w.fifo, func(in *inode) { in.nlink = 0 }) }, "has a link count of 0, by its names 1", asBefore},
	{"links of a directory", func(w *sample) { w.s.editInode(w.a, func(in *inode) { in.nlink = 9 }) }, "has a link count of 9, by its names 3", asBefore},
	{"links of the root", func(w *sample) { w.s.editInode(1, func(in *inode) { in.nlink = 0 }) }, "inode 1 has a link count of 0, by its names 3", asBefore},
	{"size of a directory", func(w *sample) { w.s.editInode(w.a, func(in *inode) { in.size = 0 }) }, "has 3 entries, its size is 0", asBefore},
	{"parent", func(w *sample) { w.s.editInode(w.c, func(in *inode) { in.parent = w.a }) }, "its parent is", asBefore},
	{"parent of a file", func(w *sample) { w.s.editInode(w.file, func(in *inode) { in.parent = 5 }) }, "no directory, but has parent 5", asBefore},
	{"policy of a fifo", func(w *sample) { w.s.editInode(w.fifo, func(in *inode) { in.layout = chunk.Copies(3) }) }, "has a policy", asBefore},
	{"size of a symlink", func(w *sample) { w.s.editInode(w.link, func(in *inode) { in.size = 100 }) }, "a symlink of 100 bytes", asBefore},
	{"allocated", func(w *sample) { w.s.editInode(w.file, func(in *inode) { in.allocated = 8 }) }, "extents have 2505 bytes, 8 are", asBefore},
	{"xattr bytes", func(w *sample) { w.s.editInode(w.file, func(in *inode) { in.xattrBytes = 0 }) }, "xattrs have 11 bytes, 0 are", asBefore},
	{"type of a name", func(w *sample) {
		w.s.set(bDentry, dentryKey(w.a, []byte("link")), encodeDentry(w.link, syscall.S_IFREG))
	}, `"link" has type`, asBefore},
	{"name of nothing", func(w *sample) {
		w.s.set(bDentry, dentryKey(w.b, []byte("x")), encodeDentry(999, syscall.S_IFREG))
		w.s.editInode(w.b, func(in *inode) { in.size++ })
	}, `"x" is inode 999, which does not exist`, sound},
	{"file without a name", func(w *sample) { w.s.del(bDentry, dentryKey(w.a, []byte("link"))) }, "has no name, though its link count is 1, and nobody holds it: it belongs into /lost+found", sound},
	{"directory without a name", func(w *sample) { w.s.del(bDentry, dentryKey(w.a, []byte("b"))) }, "has no name, though its link count is 3", sound},
	{"directories below each other", func(w *sample) { w.moveInto(w.b, w.a, "b", w.c) }, "lie below each other", sound},
	{"directory within itself", func(w *sample) { w.moveInto(w.c, w.b, "c", w.c) }, "lie below each other", sound},
	{"directory is gone", func(w *sample) { w.s.del(bInode, key8(w.b)) }, "does not exist, but its 2 entries do", sound},
	{"directory and its name are gone", func(w *sample) {
		w.s.del(bInode, key8(w.b))
		w.s.del(bDentry, dentryKey(w.a, []byte("b")))
	}, "does not exist, but its 2 entries do", sound},
	{"file is gone" + twice, func(w *sample) { w.s.del(bInode, key8(w.file)) }, "does not exist, but its 2500 bytes of data do", sound},
	{"fifo is gone", func(w *sample) { w.s.del(bInode, key8(w.fifo)) }, `"fifo" is inode`, sound},
	{"two names of a directory", func(w *sample) { w.s.set(bDentry, dentryKey(w.a, []byte("z")), encodeDentry(w.c, syscall.S_IFDIR)) }, "has 2 names", reported},
	{"bad name", func(w *sample) {
		w.s.set(bDentry, dentryKey(w.a, []byte("a/b")), encodeDentry(w.fifo, syscall.S_IFIFO))
	}, "a slash or NUL", reported},
	{"entries of a file", func(w *sample) {
		w.s.set(bDentry, dentryKey(w.fifo, []byte("x")), encodeDentry(w.link, syscall.S_IFLNK))
	}, "has entries like a directory", reported},
	{"xattr of nothing", func(w *sample) { w.s.set(bXattr, xattrKey(999, "user.x"), []byte{1}) }, "xattr of an inode that does not exist", reported},
	{"no root", func(w *sample) { w.s.garble(bInode, key8(1)) }, "there is no root directory", reported},
	{"extents are gone", func(w *sample) { w.s.del(bExtent, extentKey(w.file, 0)) }, "it seems that records were lost", reported},
	{"file is gone, and all of its data", func(w *sample) {
		w.s.del(bInode, key8(w.file))
		w.s.del(bExtent, extentKey(w.file, 0))
		w.s.del(bExtent, extentKey(w.file, 1))
	}, "it seems that records were lost", reported},
	{"inode that cannot be read", func(w *sample) { w.s.garble(bInode, key8(w.fifo)) }, "damaged record", reported},
	{"name that cannot be read", func(w *sample) { w.s.garble(bDentry, dentryKey(w.a, []byte("file"))) }, "damaged record", reported},
	{"xattr that cannot be read", func(w *sample) { w.s.garble(bXattr, xattrKey(w.file, "user.x")) }, "damaged record", reported},
	{"inode with a long key", func(w *sample) { w.s.set(bInode, []byte("123456789"), present) }, "a key of 9 bytes", reported},

	{"live bytes too low", func(w *sample) { w.live(w.sealed, 3) }, "extents have 500 bytes of it, 3 are", asBefore},
	{"live bytes too high", func(w *sample) { w.live(w.owned, 5000) }, "extents have 500 bytes of it, 5000 are", asBefore},
	{"no live bytes", func(w *sample) { w.live(w.degraded, 0) }, "extents have 500 bytes of it, 0 are", asBefore},
	{"garbage", func(w *sample) { w.garbage(0) }, "is garbage, but was not deleted", sound},
	{"garbage that looks alive", func(w *sample) { w.garbage(77) }, "extents have 0 bytes of it, 77", sound},
	{"owner that does not exist", func(w *sample) { w.s.editChunk(w.sealed, func(c *ChunkRecord) { c.Owner = 77 }) }, "written by session 77, which does not exist", asBefore},
	{"keeper that does not exist", func(w *sample) { w.s.editChunk(w.sealed, func(c *ChunkRecord) { c.Writer = 77 }) }, "kept for session 77, which does not exist", asBefore},
	{"kept, not indexed", func(w *sample) { w.s.del(bOwned, key16(w.session, uint64(w.kept))) }, "is not in the index of such", asBefore},
	{"move to nowhere", func(w *sample) {
		w.s.editChunk(w.degraded, func(c *ChunkRecord) { c.Moves = []Move{{Shard: 1, Server: 77, Started: 5}} })
	}, "to server 77, which is not registered", asBefore},
	{"move while it is written", func(w *sample) {
		w.s.editChunk(w.owned, func(c *ChunkRecord) { c.Moves = []Move{{Shard: 1, Server: c.Servers[1], Started: 5}} })
	}, "while it is being written", asBefore},
	{"two moves of a shard", func(w *sample) {
		w.s.editChunk(w.moving, func(c *ChunkRecord) { c.Moves = append(c.Moves, Move{c.Moves[0].Shard, 1, 5}) })
	}, "and to another one", asBefore},
	{"move to a server with another shard", func(w *sample) {
		w.s.editChunk(w.degraded, func(c *ChunkRecord) { c.Moves = []Move{{1, c.Servers[0], 5}} })
	}, "which has another shard", asBefore},
	{"two shards on a server", func(w *sample) { w.s.editChunk(w.coded, func(c *ChunkRecord) { c.Servers[1] = c.Servers[0] }) }, "has two of its shards", reported},
	{"shard on no server", func(w *sample) { w.s.editChunk(w.coded, func(c *ChunkRecord) { c.Servers[1] = 77 }) }, "on server 77, which is not registered", reported},
	{"empty but held", func(w *sample) { w.s.editChunk(w.coded, func(c *ChunkRecord) { c.Length = 0 }) }, "is empty, but 3 of its shards are whole", reported},
	{"chunk that cannot be read", func(w *sample) { w.s.garble(bChunk, key8(uint64(w.sealed))) }, "damaged record", reported},
	{"half a row", func(w *sample) { w.s.editChunk(w.coded, func(c *ChunkRecord) { c.Length = 700 }) }, "damaged record", reported},
	{"held by nobody", func(w *sample) { w.s.editChunk(w.sealed, func(c *ChunkRecord) { c.Held = 1 << 20 }) }, "damaged record", reported},
	{"chunk is gone", func(w *sample) { w.s.del(bChunk, key8(uint64(w.sealed))) }, "in chunk 0000000000000001, which does not exist", reported},
	{"extent beyond the chunk", func(w *sample) { w.s.editChunk(w.sealed, func(c *ChunkRecord) { c.Length = 100 }) }, "of chunk 0000000000000001, which has 100 bytes", reported},
	{"extent beyond the file", func(w *sample) { w.s.editInode(w.file, func(in *inode) { in.size = 2100 }) }, "the file at 2100", reported},
	{"extents that cannot be read", func(w *sample) { w.s.garble(bExtent, extentKey(w.file, 0)) }, "damaged record", reported},
	{"extents of a fifo", func(w *sample) {
		v, _ := w.s.buckets[bExtent].Get(string(extentKey(w.file, 1)))
		w.s.set(bExtent, extentKey(w.fifo, 1), v)
	}, "which is not a file", reported},

	{"copy is not indexed", func(w *sample) { w.s.del(bServerChunk, serverChunkKey(1, w.sealed)) }, "is not in the index of copies", asBefore},
	{"shard is not indexed", func(w *sample) { w.s.del(bServerChunk, w.storedKey(w.coded, 2)) }, "is not in the index of copies", asBefore},
	{"move is not indexed", func(w *sample) { w.s.del(bServerChunk, serverChunkKey(4, w.moving)) }, "is not in the index of copies", asBefore},
	{"copy of nothing", func(w *sample) { w.s.set(bServerChunk, serverChunkKey(4, 999), present) }, "nothing of chunk", asBefore},
	{"copy elsewhere", func(w *sample) { w.s.set(bServerChunk, serverChunkKey(4, w.sealed), present) }, "nothing of chunk", asBefore},
	{"copy with a short key", func(w *sample) { w.s.set(bServerChunk, []byte("x"), present) }, "a key of 1 bytes", asBefore},
	{"degraded, not indexed", func(w *sample) { w.s.del(bDegraded, key8(uint64(w.degraded))) }, "is not in the index of such", asBefore},
	{"indexed, not degraded", func(w *sample) { w.s.set(bDegraded, key8(uint64(w.sealed)), present) }, "index of degraded ones, but is not", asBefore},
	{"indexed, not there", func(w *sample) { w.s.set(bDegraded, key8(999), present) }, "but does not exist", asBefore},
	{"written, not indexed", func(w *sample) { w.s.del(bOwned, key16(w.session, uint64(w.owned))) }, "is not in the index of such", asBefore},
	{"indexed, not written", func(w *sample) { w.s.set(bOwned, key16(w.session, uint64(w.sealed)), present) }, "does not write chunk", asBefore},
	{"chunks of a session", func(w *sample) { w.s.editSession(w.session, func(s *SessionRecord) { s.Owned = 7 }) }, "writes 2 chunks, its record says 7", asBefore},
	{"nonce is gone", func(w *sample) { w.s.del(bNonce, bytes.Repeat([]byte{2}, 16)) }, "cannot be found by its nonce", asBefore},
	{"nonce of another", func(w *sample) {
		w.s.set(bNonce, bytes.Repeat([]byte{2}, 16), binary.BigEndian.AppendUint64([]byte{1}, w.session))
	}, "cannot be found by its nonce", asBefore},
	{"nonce of nobody", func(w *sample) {
		w.s.set(bNonce, bytes.Repeat([]byte{9}, 16), binary.BigEndian.AppendUint64([]byte{1}, 999))
	}, "leads to session 999", asBefore},
	{"nonce that cannot be read", func(w *sample) { w.s.set(bNonce, bytes.Repeat([]byte{9}, 16), []byte{1}) }, "leads to no session", asBefore},
	{"uuid is gone", func(w *sample) { w.s.del(bServerUUID, bytes.Repeat([]byte{2}, 16)) }, "cannot be found by its uuid", asBefore},
	{"uuid of another", func(w *sample) { w.s.set(bServerUUID, bytes.Repeat([]byte{9}, 16), []byte{1, 0, 0, 0, 2}) }, "which has another", asBefore},
	{"server is gone", func(w *sample) { w.s.del(bServer, serverKey(4)) }, "start it again", reported},
	{"deletion is not indexed", func(w *sample) { w.s.del(bDeletionIndex, w.s.first(bDeletionIndex)) }, "is not in its index", asBefore},
	{"deletion with another time", func(w *sample) {
		w.s.set(bDeletionIndex, w.s.first(bDeletionIndex), binary.BigEndian.AppendUint64([]byte{1}, 5))
	}, "is not in its index", asBefore},
	{"deletion twice", func(w *sample) {
		w.s.set(bDeletion, append(slices.Clone(w.s.first(bDeletion)[:4]), deletionKey(1, 5, 5)[4:]...), present)
		w.s.editCounters(func(c *counters) { c.deletions++ })
	}, "is not in its index", asBefore},
	{"indexed, no deletion", func(w *sample) {
		w.s.set(bDeletionIndex, serverChunkKey(1, 999), binary.BigEndian.AppendUint64([]byte{1}, 5))
	}, "index of deletions, but not to be deleted", asBefore},
	{"deletion of what belongs there", func(w *sample) { w.deletion(1, w.sealed) }, "is to be deleted on server 1, where it belongs", asBefore},
	{"deletion of what belongs there, unindexed", func(w *sample) {
		w.deletion(1, w.sealed)
		w.s.del(bServerChunk, serverChunkKey(1, w.sealed))
	}, "is not in the index of copies", asBefore},
	{"deletion on no server", func(w *sample) { w.deletion(77, 5) }, "on server 77, which is not registered", asBefore},

	{"holder on one side", func(w *sample) { w.s.del(bHeld, key16(w.session, w.gone)) }, "has no counterpart", asBefore},
	{"holder on the other side", func(w *sample) { w.s.del(bOrphan, key16(w.gone, w.session)) }, "has no counterpart", asBefore},
	{"holder of what has a name", func(w *sample) { w.hold(w.link, w.session) }, "held as unlinked", asBefore},
	{"holder of nothing", func(w *sample) { w.hold(999, w.session) }, "held as unlinked", asBefore},
	{"holder that does not exist", func(w *sample) { w.hold(w.gone, 999) }, "held for session 999, which does not exist", asBefore},
	{"no holder", func(w *sample) {
		w.s.del(bOrphan, key16(w.gone, w.session))
		w.s.del(bHeld, key16(w.session, w.gone))
	}, "has no name, though its link count is 0", sound},
	{"window is gone", func(w *sample) { w.s.del(bResult, key16(w.session, 0)) }, "has no window of results", sound},
	{"result of nobody", func(w *sample) { w.s.set(bResult, key16(999, 5), present) }, "a result of session 999", asBefore},
	{"result long answered", func(w *sample) { w.s.set(bResult, key16(w.session, 1), present) }, "a result of 1 outside of the window", asBefore},
	{"result far ahead", func(w *sample) { w.s.set(bResult, key16(w.session, 1<<40), present) }, "outside of the window", asBefore},
	{"result that cannot be read", func(w *sample) { w.s.set(bResult, key16(w.session, w.seq), []byte("\xff")) }, "damaged record", reported},
	{"session that cannot be read", func(w *sample) { w.s.set(bSession, key8(w.other), []byte{1}) }, "damaged record", reported},
	{"session is gone" + twice, func(w *sample) { w.s.del(bSession, key8(w.session)) }, "a result of session", sound},
	{"no command set", func(w *sample) { w.s.set(bState, commandsKey, []byte("x")) }, "state", reported},
	{"no cluster", func(w *sample) { w.s.set(bState, clusterKey, []byte("x")) }, "the cluster's id has 1 bytes", reported},
	{"no counters", func(w *sample) { w.s.garble(bState, countersKey) }, "damaged record", reported},
}

func TestDamageIsFoundAndRepaired(t *testing.T) {
	for _, c := range damages {
		t.Run(c.name, func(t *testing.T) {
			w := newSample(t)
			before := w.s.essence(t)
			data := w.s.data()
			c.damage(w)
			damaged := w.s.restored(t)
			rep := w.inspect()
			if !slices.ContainsFunc(rep.Problems, func(p string) bool { return strings.Contains(p, c.want) }) {
				t.Fatalf("found %q, want %q", rep.Problems, c.want)
			}
			left, rounds := w.heal(3)
			if c.then != reported && rounds > 1 && !strings.HasSuffix(c.name, twice) {
				t.Errorf("it took %d rounds", rounds)
			}
			if c.then != reported && len(left) > 0 {
				t.Fatalf("left: %q, of %q", left, rep.Problems)
			}
			if c.then == reported && len(left) == 0 {
				t.Fatal("it was repaired")
			}
			if c.then == asBefore {
				if after := w.s.essence(t); after != before {
					t.Fatalf("it is not as it was before:\n%s", differences(before, after))
				}
			}
			if damaged.data() != w.s.data() && c.then != sound || c.then == asBefore && data != w.s.data() {
				t.Fatal("data of files was touched")
			}
		})
	}
}

// A replica that is not damaged has other records than the one that was checked. A repair leaves it alone, but where it would
// have to read all of the state to notice: totals, names of files, live bytes of chunks. These the next repair puts right.
func TestRepairSparesWhoIsNotDamaged(t *testing.T) {
	trusted := []string{"inode counter", "inline counter", "deletion counter", "session counter", "file without a name", "file is gone" + twice,
		"file is gone, and all of its data", "fifo is gone", "bad name", "entries of a file", "chunk is gone", "extents of a fifo", "session is gone" + twice}
	for _, c := range damages {
		t.Run(c.name, func(t *testing.T) {
			w := newSample(t)
			healthy := &world{TB: t, s: w.s.restored(t), index: w.index, clock: w.clock}
			before, names, chunks := healthy.s.essence(t), healthy.s.buckets[bDentry].Keys(), healthy.s.buckets[bChunk].Keys()
			c.damage(w)
			if res := healthy.repair(opRepair(w.index, 0, w.inspect().Fixes...)); res.Errno != 0 {
				t.Fatal(res)
			}
			if after := healthy.s.essence(t); after != before && !slices.Contains(trusted, c.name) {
				t.Errorf("not spared:\n%s", differences(before, after))
			}
			if left, _ := healthy.heal(MaxFixes); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
			for _, k := range names {
				if _, ok := healthy.s.buckets[bDentry].Get(k); !ok {
					t.Errorf("name %x is gone", k)
				}
			}
			if now := healthy.s.buckets[bChunk].Keys(); !slices.Equal(chunks, now) {
				t.Errorf("chunks %x, before %x", now, chunks)
			}
		})
	}
}
