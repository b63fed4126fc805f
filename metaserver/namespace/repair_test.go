package namespace

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/kv"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func opRepair(checked, after uint64, fixes ...*pb.StateFix) *pb.Op {
	return &pb.Op{Op: &pb.Op_RepairState{RepairState: &pb.RepairState{Checked: checked, After: after, Fixes: fixes}}}
}

func (w *world) repair(op *pb.Op) *pb.Result {
	cmd := w.command(0, root, op)
	cmd.Version = VersionOf(op)
	return w.apply(cmd)
}

// What has lost its name is found in /lost+found, a directory with all below it.
func TestLostAndFound(t *testing.T) {
	w := newSample(t)
	w.s.editInode(1, func(in *inode) { in.uid, in.gid = 7, 8 })
	w.s.del(bDentry, dentryKey(w.a, []byte("b")))
	w.s.del(bDentry, dentryKey(w.a, []byte("link")))
	if left, _ := w.heal(MaxFixes); len(left) > 0 {
		t.Fatal(left)
	}
	lost := w.lookup(1, "lost+found")
	if lost.Mode != syscall.S_IFDIR|0o700 || lost.Uid != 7 || lost.Gid != 8 || lost.Nlink != 3 || lost.Size != 2 {
		t.Errorf("lost+found is %v", lost)
	}
	if got, want := w.names(lost.Inode), []string{strconv.FormatUint(w.b, 10), strconv.FormatUint(w.link, 10)}; !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("it has %q, want %q", got, want)
	}
	if b := w.lookup(lost.Inode, strconv.FormatUint(w.b, 10)); b.Inode != w.b || b.Parent != lost.Inode || b.Nlink != 3 {
		t.Errorf("the directory is %v", b)
	}
	if got := w.names(w.b); !slices.Equal(got, []string{"c", "hard"}) {
		t.Errorf("below it are %q", got)
	}
	// Later ones come there, too; a name that is taken gets a number.
	w.want(0, w.do(root, opRename(lost.Inode, strconv.FormatUint(w.link, 10), lost.Inode, strconv.FormatUint(w.fifo, 10))))
	w.s.del(bDentry, dentryKey(w.c, []byte("fifo")))
	if left, _ := w.heal(MaxFixes); len(left) > 0 {
		t.Fatal(left)
	}
	if a := w.lookup(lost.Inode, strconv.FormatUint(w.fifo, 10)+"-1"); a == nil || a.Inode != w.fifo {
		t.Errorf("the fifo is %v", a)
	}
}

// Where /lost+found is no directory, nothing is lost, and nothing done.
func TestLostFoundIsAFile(t *testing.T) {
	w := newSample(t)
	w.world.file(root, 1, "lost+found", 0o644)
	w.s.del(bDentry, dentryKey(w.a, []byte("b")))
	left, _ := w.heal(MaxFixes)
	if len(left) != 1 || !strings.Contains(left[0], "no name") {
		t.Errorf("left: %q", left)
	}
}

// A missing directory comes back in its place with all its entries, a missing file with its data.
func TestRemake(t *testing.T) {
	w := newSample(t)
	w.s.del(bInode, key8(w.b))
	w.s.del(bInode, key8(w.file))
	if left, _ := w.heal(MaxFixes); len(left) > 0 {
		t.Fatal(left)
	}
	if b := w.lookup(w.a, "b"); b.Inode != w.b || b.Nlink != 3 || b.Parent != w.a || b.Mode != syscall.S_IFDIR|0o700 {
		t.Errorf("the directory is %v", b)
	}
	f := w.lookup(w.a, "file")
	if f.Inode != w.file || f.Nlink != 2 || f.Size != posix.ExtentBlock+500 || f.Allocated != 2500 || f.Mode != syscall.S_IFREG|0o600 {
		t.Errorf("the file is %v", f)
	}
	if names := w.names(w.b); !slices.Equal(names, []string{"c", "hard"}) {
		t.Errorf("names %q", names)
	}
	if w.lookup(1, "lost+found") != nil {
		t.Error("something is in lost+found")
	}
}

// A repair of what is sound changes nothing, whatever it names.
func TestRepairOfASoundState(t *testing.T) {
	w := newSample(t)
	var fixes []*pb.StateFix
	for b := range w.s.buckets {
		w.s.buckets[b].Scan(func(k string, _ []byte) bool {
			fixes = append(fixes, indexFix(kv.Bucket(b), []byte(k), 0), &pb.StateFix{Kind: pb.StateFix_NEXT, Bucket: uint32(b), Key: []byte(k)},
				&pb.StateFix{Kind: pb.StateFix_NAME, Key: []byte(k)})
			return true
		})
	}
	for num := range uint64(20) {
		for kind := range pb.StateFix_Kind_name {
			if k := pb.StateFix_Kind(kind); k != pb.StateFix_ATTACH {
				fixes = append(fixes, &pb.StateFix{Kind: k, Id: num}, &pb.StateFix{Kind: k, Id: num, Key: dentryKey(w.a, []byte("b"))})
			}
		}
	}
	before := w.s.dump()
	for part := range slices.Chunk(fixes, MaxFixes) {
		if res := w.repair(opRepair(w.index, 0, part...)); !res.Mismatch || res.Errno != 0 {
			t.Fatalf("%v", res)
		}
	}
	w.want(syscall.EINVAL, w.repair(opRepair(w.index, 0, slices.Repeat(fixes[:1], MaxFixes+1)...)))
	old := w.command(0, root, opRepair(w.index, 0, fixes[0]))
	old.Version = 1 // in which there is none
	w.want(syscall.EOPNOTSUPP, w.apply(old))
	if after := w.s.dump(); !slices.Equal(before, after) {
		t.Fatal(differences(strings.Join(before, "\n"), strings.Join(after, "\n")))
	}
}

// What a check found is wrong by as much after other commands. It is put right once.
func TestRepairAfterOtherCommands(t *testing.T) {
	w := newSample(t)
	w.s.editInode(w.a, func(in *inode) { in.size += 5; in.nlink-- })
	w.s.editInode(w.file, func(in *inode) { in.allocated -= 100; in.xattrBytes += 7; in.nlink++ })
	w.s.editCounters(func(c *counters) { c.inodes -= 3; c.deletions += 9 })
	w.s.editSession(w.session, func(s *SessionRecord) { s.Owned += 2 })
	w.live(w.sealed, 5000)
	checked, rep := w.index, w.inspect()
	// Meanwhile:
	w.mkdir(root, w.a, "more", 0o755)
	w.want(0, w.do(root, opAlloc(3, 1, 2, 3)))
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: w.file, Chunks: []*pb.ChunkCommit{all(uint64(w.owned), 3000)},
		Extents: []*pb.Extent{{Offset: 5000, Length: 1000, Chunk: uint64(w.owned), ChunkOffset: 1100}, {Length: 20, Offset: 9000, Data: make([]byte, 20)}}})))
	w.want(0, w.do(root, opSetXattr(&pb.SetXattr{Inode: w.file, Name: "user.more", Value: []byte("more")})))
	w.want(0, w.do(root, opUnlink(w.b, "hard")))
	w.want(0, w.do(root, opUnlink(w.a, "link")))
	op := opRepair(checked, 0, rep.Fixes...)
	res := w.want(0, w.repair(op))
	w.check()
	again := w.s.dump()
	w.want(syscall.EINVAL, w.repair(op))                                       // a second time
	w.want(syscall.EINVAL, w.repair(opRepair(checked, checked, rep.Fixes...))) // after a part that there was not
	if !slices.Equal(again, w.s.dump()) {
		t.Error("a refused repair changed something")
	}
	w.want(0, w.repair(opRepair(checked, res.Index, addFix(pb.StateFix_INODES, 0, 5, 4)))) // the next part
	w.want(0, w.repair(opRepair(w.index, 0, addFix(pb.StateFix_INODES, 0, 4, 5))))         // of a newer check
	w.check()
}

// A directory that was removed since the check keeps its 0 links.
func TestRemovedMeanwhile(t *testing.T) {
	w := newSample(t)
	w.s.editInode(w.c, func(in *inode) { in.nlink = 1 })
	rep := w.inspect()
	w.want(0, w.do(root, opUnlink(w.c, "fifo")))
	w.want(0, w.do(root, opRmdir(w.b, "c", w.session)))
	w.want(0, w.repair(opRepair(w.index, 0, append(rep.Fixes, indexFix(bDegraded, key8(999), 0), addFix(pb.StateFix_INODES, 0, 1, 0), addFix(pb.StateFix_INODES, 0, 0, 1))...)))
	w.check()
}

// What has a writer is no garbage, and a move that is given up takes nothing away from a server that has another copy.
func TestRepairKeepsWhatIsNeeded(t *testing.T) {
	w := newSample(t)
	id := w.want(0, w.do(root, opAlloc(1, 1, 2, 3))).Chunks[0].Id
	if res := w.repair(opRepair(w.index, 0, &pb.StateFix{Kind: pb.StateFix_GARBAGE, Id: id})); !res.Mismatch {
		t.Errorf("a chunk that is being written: %v", res)
	}
	w.s.editChunk(w.degraded, func(c *ChunkRecord) { c.Moves = []Move{{Shard: 1, Server: c.Servers[0], Started: 5}} })
	w.want(0, w.repair(opRepair(w.index, 0, &pb.StateFix{Kind: pb.StateFix_CHUNK, Id: uint64(w.degraded)})))
	w.check()
	w.s.editChunk(w.sealed, func(c *ChunkRecord) { c.Moves = []Move{{Shard: 1, Server: 77, Started: 5}} })
	w.s.set(bDegraded, key8(uint64(w.sealed)), present)
	w.want(0, w.repair(opRepair(w.index, 0, &pb.StateFix{Kind: pb.StateFix_CHUNK, Id: uint64(w.sealed)})))
	w.check()
	// A chunk whose live bytes are wrong, too, stays until they are right.
	w.live(w.degraded, 0)
	w.s.editChunk(w.degraded, func(c *ChunkRecord) { c.Moves = []Move{{Shard: 1, Server: 77, Started: 5}} })
	w.want(0, w.repair(opRepair(w.index, 0, &pb.StateFix{Kind: pb.StateFix_CHUNK, Id: uint64(w.degraded)})))
	if c, ok := Chunk(w.s, w.degraded); !ok || len(c.Moves) > 0 {
		t.Errorf("the chunk is %v, %v", c, ok)
	}
	w.s.settle(t)
	// Where too few shards of a chunk are whole, the others may be all that is left of it.
	w = newSample(t)
	lose := func(server uint32) {
		w.want(0, w.own(&pb.Op{Op: &pb.Op_LoseShards{LoseShards: &pb.LoseShards{Server: server, Stored: []uint64{uint64(w.owned)}}}}))
	}
	lose(1)
	lose(2)
	lose(3)
	w.s.editChunk(w.owned, func(c *ChunkRecord) { c.Owner = 77 })
	w.s.del(bOwned, key16(w.session, uint64(w.owned)))
	op := opRepair(w.index, 0, &pb.StateFix{Kind: pb.StateFix_CHUNK, Id: uint64(w.owned)})
	op.GetRepairState().Spare = true
	if v := VersionOf(op); v != 3 {
		t.Errorf("the command has version %d", v)
	}
	w.want(0, w.repair(op))
	for server := range chunk.ServerID(3) {
		if !HasCopy(w.s, server+1, w.owned) {
			t.Errorf("server %d has to delete what it has of the chunk", server+1)
		}
	}
	w.s.settle(t)
	// Server 4 is not registered, but known by its uuid: it may come back.
	w = newSample(t)
	w.s.del(bServer, serverKey(4))
	if res := w.repair(opRepair(w.index, 0, indexFix(bServerUUID, []byte(strings.Repeat("\x04", 16)), 0))); !res.Mismatch {
		t.Errorf("the uuid of a server that may come back: %v", res)
	}
}

// An inode that changed since the check may have got a name.
func TestNamedMeanwhile(t *testing.T) {
	w := newSample(t)
	w.s.del(bDentry, dentryKey(w.a, []byte("link")))
	w.s.del(bDentry, dentryKey(w.a, []byte("file")))
	w.s.del(bDentry, dentryKey(w.b, []byte("hard")))
	rep := w.inspect()
	w.want(0, w.do(root, opLink(w.file, w.c, "new")))
	w.want(0, w.repair(opRepair(w.index, 0, rep.Fixes...)))
	lost := w.lookup(1, "lost+found").Inode
	if got := w.names(lost); !slices.Equal(got, []string{strconv.FormatUint(w.link, 10)}) {
		t.Errorf("lost are %q", got)
	}
	if left, _ := w.heal(MaxFixes); len(left) > 0 {
		t.Fatal(left)
	}
}

// Where records cannot be read, nothing is given up that they may refer to.
func TestBlindness(t *testing.T) {
	w := newSample(t)
	w.s.garble(bExtent, extentKey(w.file, 0))
	w.s.garble(bDentry, dentryKey(w.b, []byte("hard")))
	before := w.s.essence(t)
	w.heal(MaxFixes)
	if after := w.s.essence(t); after != before {
		t.Errorf("it changed:\n%s", differences(before, after))
	}
	// Nor is the index of copies of a chunk whose record is lost: the server would take its data for orphans.
	w = newSample(t)
	w.s.del(bChunk, key8(uint64(w.sealed)))
	w.heal(MaxFixes)
	if !HasCopy(w.s, 1, w.sealed) {
		t.Error("the copy is forgotten")
	}
}

// Where files seem to have lost extents nothing is done that would delete the data, however often it is checked: neither are the
// live bytes of chunks corrected, nor what shows that there was more.
func TestLostExtents(t *testing.T) {
	for _, c := range []struct {
		what   string
		damage func(w *sample)
	}{
		{"extents", func(w *sample) { w.s.del(bExtent, extentKey(w.file, 0)) }},
		{"a file that has names", func(w *sample) {
			w.s.del(bInode, key8(w.file))
			w.s.del(bXattr, xattrKey(w.file, "user.x"))
			w.s.editCounters(func(c *counters) { c.inodes--; c.inline -= 5 })
			w.s.del(bExtent, extentKey(w.file, 0))
			w.s.del(bExtent, extentKey(w.file, 1))
		}},
		{"a file that has none", func(w *sample) {
			w.s.del(bInode, key8(w.file))
			w.s.del(bXattr, xattrKey(w.file, "user.x"))
			w.s.editCounters(func(c *counters) { c.inline -= 5 })
			w.s.del(bExtent, extentKey(w.file, 0))
			w.s.del(bExtent, extentKey(w.file, 1))
			w.s.del(bDentry, dentryKey(w.a, []byte("file")))
			w.s.del(bDentry, dentryKey(w.b, []byte("hard")))
			w.s.editInode(w.a, func(in *inode) { in.size-- })
			w.s.editInode(w.b, func(in *inode) { in.size-- })
		}},
	} {
		w := newSample(t)
		c.damage(w)
		before := w.s.essence(t)
		left, _ := w.heal(MaxFixes)
		if after := w.s.essence(t); after != before || len(left) == 0 {
			t.Errorf("%s: left %q\n%s", c.what, left, differences(before, after))
		}
	}
}

func TestInspectIsBoundedAndEndsWithItsContext(t *testing.T) {
	w := newSample(t)
	for i := range uint64(3 * maxProblems) {
		w.s.set(bDegraded, key8(1000+i), present)
	}
	var lines []string
	phases := map[string]bool{}
	rep, err := Inspect(context.Background(), w.s, Watch{
		Progress: func(phase string, done, total uint64) {
			phases[phase] = true
			if total > 0 && done > total {
				t.Errorf("%s: %d of %d", phase, done, total)
			}
		},
		Problem: func(line string) { lines = append(lines, line) },
	})
	if err != nil || len(rep.Problems) != maxProblems || rep.Problems[maxProblems-1] != moreProblems || rep.Found != 3*maxProblems || len(rep.Fixes) != 3*maxProblems {
		t.Errorf("%d problems of %d, %d fixes, %v", len(rep.Problems), rep.Found, len(rep.Fixes), err)
	}
	if !slices.Equal(lines, rep.Problems) || len(phases) < 8 || rep.Inodes != 9 || rep.Chunks != 6 || rep.Shards == 0 {
		t.Errorf("%d lines, phases %v, %d inodes, %d chunks, %d shards", len(lines), slices.Sorted(maps.Keys(phases)), rep.Inodes, rep.Chunks, rep.Shards)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := 0
	_, err = Inspect(ctx, w.s, Watch{Progress: func(string, uint64, uint64) {
		if n++; n == 3 {
			cancel()
		}
	}})
	if err == nil || n != 3 {
		t.Errorf("it went on after %d steps: %v", n, err)
	}
	if left, _ := w.heal(100); len(left) > 0 {
		t.Error(left)
	}
}

// damageAtRandom breaks a record that follows from others.
//
// Where chunks have too many live bytes while files have lost extents, or seem to, nothing may be done: only one of the two is
// among the damages of a run.
func damageAtRandom(t *rapid.T, s *store, lost bool) {
	pick := func(b kv.Bucket) []byte {
		n := s.buckets[b].Len()
		if n == 0 {
			return nil
		}
		k, _, _ := s.buckets[b].GetAt(rapid.IntRange(0, n-1).Draw(t, bucketName(b)))
		return []byte(k)
	}
	small := func() uint64 { return rapid.Uint64Range(0, 12).Draw(t, "small") }
	num := func() uint64 {
		return rapid.SampledFrom([]uint64{0, 1, 2, 3, 77, 1 << 31, 1<<32 - 1}).Draw(t, "number")
	}
	inodes := func(f func(*inode)) {
		if k := pick(bInode); k != nil {
			s.editInode(keyNumber(k), f)
		}
	}
	chunks := func(f func(*ChunkRecord)) {
		if k := pick(bChunk); k != nil {
			s.editChunk(chunk.ID(keyNumber(k)), f)
		}
	}
	switch rapid.IntRange(0, 15).Draw(t, "damage") {
	case 0, 1:
		b := rapid.SampledFrom([]kv.Bucket{bServerChunk, bOwned, bServerUUID, bNonce, bOrphan, bHeld, bDeletion, bDeletionIndex, bDegraded}).Draw(t, "bucket")
		if k := pick(b); k != nil {
			s.del(b, k)
		}
	case 2:
		s.set(bServerChunk, serverChunkKey(chunk.ServerID(small()), chunk.ID(small())), present)
	case 3:
		s.set(bOwned, key16(small(), small()), present)
		s.set(bDegraded, key8(small()), present)
	case 4:
		s.set(bOrphan, key16(small(), small()), present)
		s.set(bHeld, key16(small(), small()), present)
	case 5:
		k := deletionKey(chunk.ServerID(small()), int64(small()), chunk.ID(small()))
		s.set(bDeletion, k, present)
		s.set(bDeletionIndex, serverChunkKey(chunk.ServerID(small()), chunk.ID(small())), append([]byte{1}, key8(small())...))
	case 6:
		s.editCounters(func(c *counters) {
			if !lost && c.inodes < 1<<40 {
				c.inodes -= min(c.inodes-1, small())
			}
			*rapid.SampledFrom([]*uint64{&c.chunks, &c.live, &c.inline, &c.deletions, &c.sessions, &c.servers, &c.nextInode, &c.nextChunk, &c.nextSession}).Draw(t, "counter") = num() + 1
		})
	case 7:
		inodes(func(in *inode) { in.nlink = uint32(num()) })
	case 8:
		inodes(func(in *inode) {
			if n := num(); lost || n < in.allocated {
				in.allocated = n
			}
			if in.isDir() {
				in.size = num()
			}
		})
	case 9:
		inodes(func(in *inode) { in.xattrBytes = uint32(num()) })
	case 10:
		inodes(func(in *inode) {
			if in.num != posix.RootInode {
				in.parent = num()
			}
		})
	case 11:
		if k := pick(bDentry); k != nil {
			s.del(bDentry, k)
		}
	case 12:
		chunks(func(c *ChunkRecord) {
			if n := num(); !lost || n < c.Live {
				c.Live = n
			}
		})
	case 13:
		chunks(func(c *ChunkRecord) {
			c.Moves = append(c.Moves, Move{rapid.IntRange(0, c.Layout.Width()-1).Draw(t, "shard"), chunk.ServerID(small() + 1), small()})
		})
	case 14:
		inodes(func(in *inode) {
			if in.isDir() {
				s.set(bDentry, dentryKey(in.num, []byte("new")), encodeDentry(1000+small(), syscall.S_IFIFO))
			}
		})
	case 15:
		if k := pick(bSession); k != nil {
			s.editSession(keyNumber(k), func(r *SessionRecord) { r.Owned = uint32(num()) })
		}
	}
}

// TestRandomDamageIsRepaired breaks records of random states that follow from others, repairs them, on two replicas, and wants
// nothing left to complain about and no file's data touched.
func TestRandomDamageIsRepaired(outer *testing.T) {
	rapid.Check(outer, func(t *rapid.T) {
		tb := rapidTB{outer, t}
		w := newSample(tb).world // in random states there is little
		for i := range rapid.IntRange(0, 60).Draw(t, "commands") {
			cmd := randomCommand(t, w.clock+int64(i))
			Touched(w.s, cmd.Op)
			w.s.settle(tb)
			w.apply(proto.Clone(cmd).(*pb.Command))
		}
		w.check()
		data := w.s.data()
		lost := rapid.Bool().Draw(t, "lost")
		for range rapid.IntRange(1, 5).Draw(t, "damages") {
			damageAtRandom(t, w.s, lost)
		}
		damaged := strings.Join(w.s.dump(), "\n")
		if left, _ := w.heal(rapid.IntRange(1, 20).Draw(t, "piece")); len(left) > 0 {
			t.Fatalf("left: %q\nthe damaged state:\n%s", left, damaged)
		}
		if w.s.data() != data {
			t.Fatalf("data of files was touched:\n%s", differences(data, w.s.data()))
		}
	})
}
