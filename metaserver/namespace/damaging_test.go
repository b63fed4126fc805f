package namespace

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// sample is a state with something of everything in it.
type sample struct {
	*world
	a, b, c, file, link, fifo, gone, goneDir uint64 // inodes
	sealed, owned, degraded, moving, coded   chunk.ID
	kept                                     chunk.ID // sealed by repair under its writer, and nothing refers to it
	other                                    uint64   // a second session
}

func newSample(t testing.TB) *sample {
	w := &sample{world: newWorld(t)}
	w.a = w.mkdir(root, 1, "a", 0o755)
	w.b = w.mkdir(root, w.a, "b", 0o755)
	w.c = w.mkdir(root, w.b, "c", 0o755)
	w.file = w.file2(w.a, "file")
	w.want(0, w.do(root, opLink(w.file, w.b, "hard")))
	w.link = w.want(0, w.do(root, opSymlink(w.a, "link", "target"))).Attr.Inode
	w.fifo = w.mk(root, w.c, "fifo", syscall.S_IFIFO|0o644)
	w.want(0, w.do(root, opSetXattr(&pb.SetXattr{Inode: w.file, Name: "user.x", Value: []byte("value")})))
	w.want(0, w.do(root, &pb.Op{Op: &pb.Op_SetLayout{SetLayout: &pb.SetLayout{Inode: w.a, Layout: chunk.Copies(2).Proto()}}}))

	w.want(0, w.do(root, opAlloc(5, 1, 2, 3)))
	w.sealed, w.owned, w.degraded, w.moving = 1, 2, 3, 4
	code := opAlloc(1, 1, 2, 3)
	code.GetAllocChunks().Layout = chunk.Layout{Data: 2, Parity: 1, Min: 3, Cell: 512}.Proto()
	w.coded = chunk.ID(w.want(0, w.do(root, code)).Chunks[0].Id)
	commit := &pb.Commit{Inode: w.file, Extents: []*pb.Extent{{Offset: 700, Length: 5, Data: []byte("bytes")}}}
	for i, id := range []chunk.ID{w.sealed, w.owned, w.degraded, w.moving, w.coded} {
		off := uint64(i) * 1000
		if i == 4 {
			off = posix.ExtentBlock
		}
		commit.Extents = append(commit.Extents, &pb.Extent{Offset: off, Length: 500, Chunk: uint64(id)})
		cc := &pb.ChunkCommit{Chunk: uint64(id), Length: 1024, Servers: []uint32{1, 2, 3}, Seal: id != w.owned}
		commit.Chunks = append(commit.Chunks, cc)
	}
	w.want(0, w.do(root, opCommit(commit)))
	w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: 5}))) // there are deletions now
	w.want(0, w.own(&pb.Op{Op: &pb.Op_LoseShards{LoseShards: &pb.LoseShards{Server: 2, Stored: []uint64{uint64(w.degraded), uint64(w.moving)}}}}))
	w.want(0, w.own(&pb.Op{Op: &pb.Op_StartMoves{StartMoves: &pb.StartMoves{Moves: []*pb.Move{{Chunk: uint64(w.moving), Shard: w.shardOn(w.moving, 2), Server: 4}}}}}))

	w.kept = chunk.ID(w.want(0, w.do(root, opAlloc(1, 1, 2, 3))).Chunks[0].Id)
	f := w.world.file(root, w.a, "kept", 0o644)
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 10, Chunk: uint64(w.kept)}}, Chunks: []*pb.ChunkCommit{all(uint64(w.kept), 20)}})))
	w.want(0, w.own(opMoves(true, &pb.Move{Chunk: uint64(w.kept), Shard: 0, Server: 4})))
	w.want(0, w.do(root, opUnlink(w.a, "kept")))

	w.gone = w.file2(w.a, "gone")
	w.want(0, w.do(root, opUnlink(w.a, "gone", w.session)))
	w.goneDir = w.mkdir(root, w.a, "goneDir", 0o755)
	w.want(0, w.do(root, opRmdir(w.a, "goneDir", w.session)))
	w.other = w.open(2)
	w.check()
	return w
}

// file2 is a file with inline data.
func (w *sample) file2(dir uint64, name string) uint64 {
	f := w.world.file(root, dir, name, 0o644)
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 3, Data: []byte("abc")}}})))
	return f
}

func (w *sample) shardOn(id chunk.ID, server chunk.ServerID) uint32 {
	rec, _ := Chunk(w.s, id)
	w.s.settle(w)
	return uint32(rec.ShardOn(server))
}

// Ways to damage the state.

func (s *store) set(b kv.Bucket, key, value []byte) { s.buckets[b].Set(string(key), value) }

func (s *store) del(b kv.Bucket, key []byte) {
	if _, ok := s.buckets[b].Delete(string(key)); !ok {
		panic(fmt.Sprintf("%s %x is not there", bucketName(b), key))
	}
}

func (s *store) editInode(num uint64, f func(*inode)) {
	v, _ := s.buckets[bInode].Get(string(key8(num)))
	in, err := decodeInode(num, bytes.Clone(v))
	if err != nil {
		panic(err)
	}
	f(in)
	s.set(bInode, key8(num), in.encode())
}

func (s *store) editChunk(id chunk.ID, f func(*ChunkRecord)) {
	v, _ := s.buckets[bChunk].Get(string(key8(uint64(id))))
	c, err := decodeChunk(id, v)
	if err != nil {
		panic(err)
	}
	f(c)
	s.set(bChunk, key8(uint64(id)), c.encode())
}

func (s *store) editCounters(f func(*counters)) {
	v, _ := s.buckets[bState].Get(string(countersKey))
	c, err := decodeCounters(v)
	if err != nil {
		panic(err)
	}
	f(&c)
	s.set(bState, countersKey, c.encode())
}

func (s *store) editSession(id uint64, f func(*SessionRecord)) {
	v, _ := s.buckets[bSession].Get(string(key8(id)))
	r, err := decodeSession(id, v)
	if err != nil {
		panic(err)
	}
	f(r)
	s.set(bSession, key8(id), r.encode())
}

// garble cuts the end off a value, which no decoder takes.
func (s *store) garble(b kv.Bucket, key []byte) {
	v, ok := s.buckets[b].Get(string(key))
	if !ok {
		panic(fmt.Sprintf("%s %x is not there", bucketName(b), key))
	}
	s.set(b, key, append([]byte{99}, v[1:]...))
}

func (s *store) first(b kv.Bucket) (key []byte) {
	s.buckets[b].Scan(func(k string, _ []byte) bool { key = []byte(k); return false })
	return key
}

// essence is the state without what a repair may leave changed: versions of inodes, the clock, and that there was a repair.
func (s *store) essence(t testing.TB) string {
	var out strings.Builder
	for b := range s.buckets {
		s.buckets[b].Scan(func(k string, v []byte) bool {
			switch b := kv.Bucket(b); {
			case b == bInode:
				if in, err := decodeInode(0, bytes.Clone(v)); err == nil {
					in.version = 0
					v = in.encode()
				}
			case b == bState && k == string(countersKey):
				c, err := decodeCounters(v)
				if err != nil {
					t.Fatal(err)
				}
				c.clock = 0
				v = c.encode()
			case b == bState && k == string(repairedKey):
				return true
			}
			fmt.Fprintf(&out, "%s %x = %x\n", bucketName(kv.Bucket(b)), k, v)
			return true
		})
	}
	return out.String()
}

func (w *world) inspect() *Inspection {
	w.Helper()
	rep, err := Inspect(context.Background(), w.s, Watch{})
	w.s.settle(w)
	if err != nil {
		w.Fatal(err)
	}
	return rep
}

// heal repairs as the leader does, in pieces of a few fixes, on two replicas, which it compares. It returns what is left, and
// how often it had to check before nothing more could be done.
func (w *world) heal(piece int) (left []string, rounds int) {
	w.Helper()
	twin := &world{TB: w.TB, s: w.s.restored(w.TB), index: w.index, clock: w.clock}
	both := func(op *pb.Op) *pb.Result {
		w.Helper()
		Touched(w.s, op)
		w.s.settle(w)
		cmd := w.command(0, root, op)
		cmd.Version = VersionOf(op)
		res := w.apply(cmd)
		sameResult(w, "the other replica", res, twin.apply(cmd))
		if res.Errno != 0 {
			w.Fatalf("a repair was refused: %v", res)
		}
		return res
	}
	rep := w.inspect()
	for rounds < 10 {
		if len(rep.Fixes)+len(rep.Ends) == 0 {
			break
		}
		rounds++
		checked, after := w.index, uint64(0)
		for part := range slices.Chunk(rep.Fixes, piece) {
			res := both(&pb.Op{Op: &pb.Op_RepairState{RepairState: &pb.RepairState{Checked: checked, After: after, Fixes: part}}})
			if !res.Mismatch {
				after = res.Index
			}
		}
		if len(rep.Ends) > 0 {
			both(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: rep.Ends}}})
		}
		if a, b := w.s.dump(), twin.s.dump(); !slices.Equal(a, b) {
			w.Fatalf("the replicas differ:\n%s\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
		}
		before := rep
		if rep = w.inspect(); rep.Found >= before.Found && slices.Equal(rep.Problems, before.Problems) {
			break
		}
	}
	return rep.Problems, rounds
}

// differences are the lines that two texts do not share.
func differences(a, b string) string {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	var out []string
	for _, l := range as {
		if !slices.Contains(bs, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range bs {
		if !slices.Contains(as, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}

// data is what files consist of: extents and inline data.
func (s *store) data() string {
	var out strings.Builder
	s.buckets[bExtent].Scan(func(k string, v []byte) bool { fmt.Fprintf(&out, "%x %x\n", k, v); return true })
	s.buckets[bInode].Scan(func(k string, v []byte) bool {
		if in, err := decodeInode(0, bytes.Clone(v)); err == nil {
			for _, p := range in.inline {
				fmt.Fprintf(&out, "%x %d %x\n", k, p.off, p.data)
			}
		}
		return true
	})
	return out.String()
}

// live sets the live bytes of a chunk, as damage: the counter has its own.
func (w *sample) live(id chunk.ID, n uint64) {
	w.s.editChunk(id, func(c *ChunkRecord) {
		w.s.editCounters(func(s *counters) { s.live += n - c.Live })
		c.Live = n
	})
}

// garbage is a sealed chunk that no extent refers to.
func (w *sample) garbage(live uint64) {
	c := &ChunkRecord{ID: 5, Layout: chunk.Copies(3), Length: 100, Live: live, Servers: []chunk.ServerID{1, 2, 4}, Held: 7}
	w.s.set(bChunk, key8(5), c.encode())
	w.s.editCounters(func(c *counters) { c.chunks++; c.live += live })
	for _, s := range c.Servers {
		key := serverChunkKey(s, 5)
		w.s.set(bServerChunk, key, present)
		if v, ok := w.s.buckets[bDeletionIndex].Get(string(key)); ok {
			w.s.del(bDeletion, deletionOf(key, v))
			w.s.del(bDeletionIndex, key)
			w.s.editCounters(func(c *counters) { c.deletions-- })
		}
	}
}

func (w *sample) deletion(server chunk.ServerID, id chunk.ID) {
	w.s.set(bDeletion, deletionKey(server, 5, id), present)
	w.s.set(bDeletionIndex, serverChunkKey(server, id), binary.BigEndian.AppendUint64([]byte{1}, 5))
	w.s.editCounters(func(c *counters) { c.deletions++ })
}

// moveInto moves a directory to where it must not be.
func (w *sample) moveInto(dir, from uint64, name string, to uint64) {
	w.s.del(bDentry, dentryKey(from, []byte(name)))
	w.s.editInode(from, func(in *inode) { in.size--; in.nlink-- })
	w.s.set(bDentry, dentryKey(to, []byte("loop")), encodeDentry(dir, syscall.S_IFDIR))
	w.s.editInode(to, func(in *inode) { in.size++; in.nlink++ })
	w.s.editInode(dir, func(in *inode) { in.parent = to })
}

func (w *sample) hold(num, session uint64) {
	w.s.set(bOrphan, key16(num, session), present)
	w.s.set(bHeld, key16(session, num), present)
}

func (w *sample) storedKey(id chunk.ID, shard int) []byte {
	rec, _ := Chunk(w.s, id)
	w.s.settle(w)
	return serverChunkKey(rec.Servers[shard], rec.Stored(shard))
}
