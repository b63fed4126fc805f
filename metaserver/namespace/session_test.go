package namespace

import (
	"bytes"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestRetryReturnsTheFirstResult(t *testing.T) {
	w := newWorld(t)
	type applied struct {
		cmd *pb.Command
		res *pb.Result
	}
	var log []applied
	do := func(op *pb.Op) *pb.Result {
		Touched(w.s, op)
		w.s.settle(t)
		w.seq++
		cmd := w.command(w.session, root, op)
		cmd.Sequence, cmd.Unanswered = w.seq, 1
		res := w.apply(cmd)
		log = append(log, applied{cmd, proto.Clone(res).(*pb.Result)})
		return res
	}
	dir := do(opMake(1, "d", syscall.S_IFDIR|0o755)).Attr.Inode
	do(opMake(1, "d", syscall.S_IFDIR|0o755)) // EEXIST: failures are answered again too
	f := do(opMake(dir, "f", 0o644)).Attr.Inode
	do(opSymlink(dir, "s", "target"))
	do(opLink(f, dir, "g"))
	id := do(opAlloc(2, 1, 2, 3)).Chunks[0].Id
	do(opCommit(&pb.Commit{Inode: f, Append: true, Chunks: []*pb.ChunkCommit{{Chunk: id, Length: 100, Servers: []uint32{1, 2, 3}}},
		Extents: []*pb.Extent{{Length: 100, Chunk: id}}}))
	do(opCommit(&pb.Commit{Inode: f, Append: true, Extents: []*pb.Extent{{Length: 100, Chunk: id}}}))
	do(opSet(&pb.SetAttr{Inode: f, Mode: new(uint32(0o600))}))
	do(opSetXattr(&pb.SetXattr{Inode: f, Name: "user.x", Create: true}))
	do(opRename(dir, "f", dir, "h"))
	do(opUnlink(dir, "h"))
	do(opUnlink(dir, "g"))
	do(opRmdir(1, "d"))
	if log[1].res.Errno != uint32(syscall.EEXIST) || log[7].res.Offset != 100 || log[len(log)-1].res.Errno != uint32(syscall.ENOTEMPTY) {
		t.Fatalf("unexpected results: %v", log)
	}
	w.check()
	before := w.s.dump()
	for i := range log {
		sameResult(t, "a retry", log[i].res, w.apply(log[i].cmd))
		sameResult(t, "the recorded result", log[i].res, Result(w.s, w.session, log[i].cmd.Sequence))
		w.s.settle(t)
	}
	if strings.Join(before, "\n") != strings.Join(w.s.dump(), "\n") {
		t.Fatal("retries changed the state")
	}
	// Retries after commands of another session.
	mine := w.session
	other := w.open(2)
	w.session, w.seq = other, 0
	w.want(0, w.do(root, opUnlink(dir, "s")))
	w.want(0, w.do(root, opRmdir(1, "d")))
	w.session = mine
	for i := range log {
		sameResult(t, "a late retry", log[i].res, w.apply(log[i].cmd))
	}
	w.check()
}

func TestResultsArePrunedAndBounded(t *testing.T) {
	w := newWorld(t)
	send := func(sequence, unanswered uint64) *pb.Result {
		cmd := w.command(w.session, root, opSet(&pb.SetAttr{Inode: 1, MtimeNow: true}))
		cmd.Sequence, cmd.Unanswered = sequence, unanswered
		return w.apply(cmd)
	}
	for i := uint64(1); i <= 20; i++ {
		w.want(0, send(i, 1))
	}
	w.want(0, send(21, 15))
	if n := w.s.buckets[bResult].Len(); n != 1+7 {
		t.Errorf("%d results are kept", n)
	}
	w.check()
	w.want(0, send(15, 15)) // a retry
	for _, c := range []struct{ sequence, unanswered uint64 }{{14, 1}, {14, 15}, {0, 0}, {30, 31}, {15 + maxWindow + 1, 1}, {1 << 60, 15}} {
		before := w.s.dump()
		w.want(syscall.EINVAL, send(c.sequence, c.unanswered))
		if strings.Join(before, "\n") != strings.Join(w.s.dump(), "\n") {
			t.Errorf("%v changed the state", c)
		}
	}
	w.want(0, send(15+maxWindow, 1)) // out of order, but within the window
	w.want(0, send(40, 3))
	w.check()
}

func TestSessions(t *testing.T) {
	w := newWorld(t)
	if again := w.open(1); again != w.session {
		t.Errorf("the same nonce opened session %d after %d", again, w.session)
	}
	second := w.open(2)
	if got := Sessions(w.s); len(got) != 2 || got[0] != w.session || got[1] != second || !HasSession(w.s, second) || HasSession(w.s, 0) {
		t.Errorf("sessions: %v", got)
	}
	w.s.settle(t)
	f := w.file(root, 1, "f", 0o644)
	ids := w.want(0, w.do(root, opAlloc(3, 1, 2, 3))).Chunks
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Chunks: []*pb.ChunkCommit{{Chunk: ids[0].Id, Length: 50, Servers: []uint32{1, 3}}, {Chunk: ids[1].Id, Length: 50, Servers: []uint32{1, 2, 3}}},
		Extents: []*pb.Extent{{Length: 50, Chunk: ids[0].Id}}})))
	w.want(0, w.do(root, opUnlink(1, "f", w.session, second, 99)))
	if a := w.attr(f); a.Nlink != 0 || a.Size != 50 {
		t.Errorf("an unlinked open file: %v", a)
	}
	w.want(syscall.ENOENT, w.do(root, opLink(f, 1, "back")))
	w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: f, Size: new(uint64(40))})))
	w.check()
	if held := Held(w.s, second); len(held) != 1 || held[0] != f {
		t.Errorf("held: %v", held)
	}
	w.s.settle(t)

	// The first session is closed: its chunks are sealed, the second still holds the file.
	last := w.last
	w.want(0, w.do(root, &pb.Op{Op: &pb.Op_CloseSession{CloseSession: &pb.CloseSession{}}}))
	w.check()
	for i, want := range []bool{true, false, false} {
		c, ok := Chunk(w.s, chunk.ID(ids[i].Id))
		if ok != want || ok && (c.Owner != 0 || c.Length != 50 || c.Live != 40 || len(holders(c)) != 2) {
			t.Errorf("chunk %d after its session: %+v", i, c)
		}
	}
	w.s.settle(t)
	for _, cmd := range []*pb.Command{w.last, last} {
		before := w.s.dump()
		if res := w.apply(cmd); !IsSessionEnded(res) {
			t.Errorf("a command of an ended session: %v", res)
		}
		if strings.Join(before, "\n") != strings.Join(w.s.dump(), "\n") {
			t.Error("it changed the state")
		}
	}
	w.attr(f)

	// The second expires, twice: the file goes, and with it the last chunk.
	for range 2 {
		w.want(0, w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{second, 77}}}}))
		w.check()
	}
	w.gone(f)
	tot := Totals(w.s)
	if tot.Chunks != 0 || tot.LiveBytes != 0 || tot.Sessions != 0 || tot.Inodes != 1 || tot.Deletions != 9 {
		t.Errorf("totals: %+v", tot)
	}
	if third := w.open(1); third <= second {
		t.Errorf("session %d was used again", third)
	}
	w.check()
}

func TestReleaseInodes(t *testing.T) {
	w := newWorld(t)
	d := w.mkdir(root, 1, "d", 0o755)
	f := w.file(root, 1, "f", 0o644)
	w.want(0, w.do(root, opRmdir(1, "d", w.session)))
	w.want(0, w.do(root, opUnlink(1, "f", w.session, w.session)))
	w.want(syscall.ENOENT, w.do(root, opMake(d, "n", 0o644)))
	w.want(syscall.ENOENT, w.do(root, opRename(d, "n", 1, "n")))
	w.check()
	w.want(0, w.do(root, &pb.Op{Op: &pb.Op_ReleaseInodes{ReleaseInodes: &pb.ReleaseInodes{Inodes: []uint64{d, f, 1, 9999, f}}}}))
	w.gone(d)
	w.gone(f)
	w.attr(1)
	w.check()
	// A holder that is gone counts for nothing.
	f = w.file(root, 1, "f", 0o644)
	w.want(0, w.do(root, opUnlink(1, "f", 4711)))
	w.gone(f)
	w.check()
}

func TestServers(t *testing.T) {
	w := newWorld(t)
	register := func(uuid byte, server uint32, address string) *pb.Result {
		return w.own(&pb.Op{Op: &pb.Op_RegisterServer{RegisterServer: &pb.RegisterServer{Uuid: bytes.Repeat([]byte{uuid}, 16), Server: server, Address: address,
			Domain: map[string]string{"zone": "b", "rack": "r", "host": "h"}}}})
	}
	if res := w.want(0, register(2, 2, "new:1")); res.Server != 2 || len(res.Cluster) != 16 {
		t.Errorf("a server that comes back: %v", res)
	}
	if res := w.want(0, register(2, 0, "new:2")); res.Server != 2 {
		t.Errorf("a server that forgot its number: %v", res)
	}
	s, ok := Server(w.s, 2)
	if !ok || s.Address != "new:2" || len(s.Domain) != 3 || s.Domain["zone"] != "b" || s.UUID[0] != 2 {
		t.Errorf("its record: %+v", s)
	}
	w.want(syscall.EINVAL, register(2, 3, "new:1"))
	w.want(syscall.EINVAL, register(9, 3, "new:1"))
	w.want(syscall.EINVAL, register(9, 0, ""))
	w.want(syscall.EINVAL, register(9, 0, strings.Repeat("a", maxAddress+1)))
	if res := w.want(0, register(9, 0, "x:1")); res.Server != 5 {
		t.Errorf("a new server: %v", res)
	}
	if list := Servers(w.s); len(list) != 5 || list[4].ID != 5 || list[4].Address != "x:1" {
		t.Errorf("servers: %+v", list)
	}
	w.s.settle(t)
	again := w.own(&pb.Op{Op: &pb.Op_InitCluster{InitCluster: &pb.InitCluster{Cluster: bytes.Repeat([]byte{9}, 16)}}})
	if again.Errno != 0 || again.Cluster[0] != 7 {
		t.Errorf("a cluster made twice: %v", again)
	}
	w.check()
}

func TestRefusedCommands(t *testing.T) {
	w := newWorld(t)
	w.want(syscall.EINVAL, w.own(opMake(1, "n", 0o644)))
	w.want(syscall.EINVAL, w.own(&pb.Op{}))
	w.want(syscall.EINVAL, w.own(nil))
	w.want(syscall.EINVAL, w.do(root, &pb.Op{Op: &pb.Op_FinishDeletions{FinishDeletions: &pb.FinishDeletions{}}}))
	w.want(syscall.EINVAL, w.do(root, &pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{}}}))
	w.want(syscall.EINVAL, w.own(&pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Nonce: []byte("short")}}}))
	newer := w.command(0, root, opAlloc(1))
	newer.Version = CommandVersion + 1
	w.want(syscall.EOPNOTSUPP, w.apply(newer))
	w.check()

	fresh := &world{TB: t, s: newStore()}
	fresh.want(syscall.EAGAIN, fresh.own(&pb.Op{Op: &pb.Op_OpenSession{OpenSession: &pb.OpenSession{Nonce: make([]byte, 16)}}}))
	fresh.want(syscall.EINVAL, fresh.own(&pb.Op{Op: &pb.Op_InitCluster{InitCluster: &pb.InitCluster{Cluster: []byte("x")}}}))
	if len(fresh.s.dump()) != 0 {
		t.Error("a refused command left something")
	}
	if Totals(fresh.s).Cluster != nil {
		t.Error("a cluster out of nothing")
	}
	fresh.want(0, fresh.own(&pb.Op{Op: &pb.Op_InitCluster{InitCluster: &pb.InitCluster{Cluster: make([]byte, 16), Uid: 1000, Gid: 100}}}))
	if a, err := GetAttr(fresh.s, 1); err != nil || a.Uid != 1000 || a.Gid != 100 {
		t.Errorf("the root directory: %v, %v", a, err)
	}
	fresh.check()
}

// TestDamagedRecords damages every record in turn: commands and reads fail, and say which record it was, or never met it.
func TestDamagedRecords(t *testing.T) {
	build := func() *world {
		w := newWorld(t)
		d := w.mkdir(root, 1, "d", 0o755)
		f := w.file(root, d, "f", 0o644)
		w.want(0, w.do(root, opSetXattr(&pb.SetXattr{Inode: f, Name: "user.x"})))
		id := w.want(0, w.do(root, opAlloc(1, 1, 2, 3))).Chunks[0].Id
		w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Chunks: []*pb.ChunkCommit{{Chunk: id, Length: 100, Servers: []uint32{1, 2}}},
			Extents: []*pb.Extent{{Offset: 50, Length: 100, Chunk: id}, {Length: 3, Data: []byte("abc")}}})))
		return w
	}
	sound := build()
	for b := range sound.s.buckets {
		for _, key := range sound.s.buckets[b].Keys() {
			for _, bad := range [][]byte{{}, {0}, {1}, {2, 3, 4}, bytes.Repeat([]byte{0xff}, 300), bytes.Repeat([]byte{1}, 41)} {
				w := build()
				w.s.buckets[b].Set(key, bad)
				d, f := uint64(2), uint64(3)
				for _, op := range []*pb.Op{opMake(d, "n", 0o644), opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 200, Chunk: 1}}}),
					opSet(&pb.SetAttr{Inode: f, Size: new(uint64(60))}), opRename(d, "f", 1, "g"), opUnlink(1, "g"), opAlloc(1, 1, 2, 3), opSeal(&pb.ChunkCommit{Chunk: 1})} {
					res := w.do(root, op)
					if res.Errno == uint32(syscall.EIO) && !strings.Contains(res.Message, "damaged record") {
						t.Errorf("%s %x: %v", bucketNames[b], key, res)
					}
				}
				_, _ = Extents(w.s, f, 0, 0)
				_, _, _, _ = ReadDir(w.s, root, d, nil, 0)
				_, _, _ = Lookup(w.s, root, d, []byte("f"))
				_, _ = ListXattr(w.s, root, f)
				_, _ = GetXattr(w.s, root, f, "user.x")
				_ = Check(w.s)
				w.s.settle(t)
			}
		}
	}
}
