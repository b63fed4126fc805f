package namespace

import (
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func opMoves(keep bool, moves ...*pb.Move) *pb.Op {
	return &pb.Op{Op: &pb.Op_StartMoves{StartMoves: &pb.StartMoves{Moves: moves, Keep: keep}}}
}

// kept is a state with a chunk that repair sealed under its writer, who has written more than was committed.
type kept struct {
	*world
	file    uint64
	id      chunk.ID
	servers []uint32
}

func newKept(t *testing.T, keep bool) *kept {
	w := &kept{world: newWorld(t)}
	w.file = w.world.file(root, 1, "f", 0o644)
	a := w.want(0, w.do(root, opAlloc(1, 1, 2, 3))).Chunks[0]
	w.id, w.servers = chunk.ID(a.Id), a.Servers
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: w.file, Extents: []*pb.Extent{{Length: 100, Chunk: a.Id}}, Chunks: []*pb.ChunkCommit{all(a.Id, 100)}})))
	if res := w.want(0, w.own(opMoves(keep, &pb.Move{Chunk: a.Id, Shard: 1, Server: 4}))); len(res.Moves) != 1 {
		t.Fatalf("started: %v", res)
	}
	w.check()
	return w
}

func (w *kept) there(want bool) {
	w.Helper()
	_, ok := Chunk(w.s, w.id)
	w.s.settle(w)
	if ok != want {
		w.Errorf("the chunk is there: %v, want %v", ok, want)
	}
	if deletes := len(Deletions(w.s, chunk.ServerID(w.servers[0]), w.clock+1, 9)) > 0; deletes == want {
		w.Errorf("it is deleted on servers: %v", deletes)
	}
	w.check()
}

// overwrite leaves no live bytes in the chunk.
func (w *kept) overwrite() {
	w.Helper()
	w.want(0, w.do(root, opSet(&pb.SetAttr{Inode: w.file, Size: new(uint64(0))})))
}

// What a writer has not committed of a chunk that repair sealed may be nowhere else. So the chunk stays until the writer gives
// it up, or its session ends, however little is referred to.
func TestSealedByRepair(t *testing.T) {
	for name, end := range map[string]func(w *kept){
		"sealed": func(w *kept) { w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: uint64(w.id), Length: 100}))) },
		"cut": func(w *kept) {
			w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: uint64(w.id), Length: 50, Cut: true, Servers: w.servers})))
		},
		"closed": func(w *kept) {
			w.want(0, w.do(root, &pb.Op{Op: &pb.Op_CloseSession{CloseSession: &pb.CloseSession{}}}))
		},
		"expired": func(w *kept) {
			w.want(0, w.own(&pb.Op{Op: &pb.Op_ExpireSessions{ExpireSessions: &pb.ExpireSessions{Sessions: []uint64{w.session}}}}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newKept(t, true)
			w.overwrite()
			w.there(true)
			// The move ends meanwhile, and others want to give the chunk up.
			w.want(0, w.own(&pb.Op{Op: &pb.Op_FinishMoves{FinishMoves: &pb.FinishMoves{Done: []*pb.Move{{Chunk: uint64(w.id), Shard: 1, Server: 4}}}}}))
			mine, seq := w.session, w.seq
			w.session, w.seq = w.open(2), 0
			w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: uint64(w.id)}, &pb.ChunkCommit{Chunk: uint64(w.id), Cut: true, Servers: w.servers})))
			w.session, w.seq = mine, seq
			w.there(true)
			// No more of it is committed.
			w.want(syscall.EINVAL, w.do(root, opCommit(&pb.Commit{Inode: w.file, Extents: []*pb.Extent{{Length: 10, Chunk: uint64(w.id), ChunkOffset: 100}}, Chunks: []*pb.ChunkCommit{all(uint64(w.id), 110)}})))
			w.there(true)
			end(w)
			w.there(false)
		})
	}
}

// What the writer gave up stays as long as something refers to it, as ever.
func TestSealedByRepairAndInUse(t *testing.T) {
	w := newKept(t, true)
	c, _ := Chunk(w.s, w.id)
	if !c.info().Open {
		t.Error("readers do not wait for its writer")
	}
	w.want(0, w.do(root, opSeal(&pb.ChunkCommit{Chunk: uint64(w.id)})))
	w.there(true)
	if c, _ = Chunk(w.s, w.id); c.info().Open {
		t.Error("readers wait for a writer that has given it up")
	}
	w.overwrite()
	w.there(false)
}

// Commands of before, which do not say so, keep nothing: metaservers that replay them come to the same state.
func TestSealedByRepairOfOld(t *testing.T) {
	w := newKept(t, false)
	w.overwrite()
	w.there(false)
	cmd := w.command(0, root, opMoves(true))
	cmd.Version = 1
	w.want(syscall.EOPNOTSUPP, w.apply(cmd))
	if v := VersionOf(opMoves(false)); v != 1 {
		t.Errorf("a command that all know has version %d", v)
	}
}
