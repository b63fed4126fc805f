package namespace

import (
	"bytes"
	"slices"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// opDamaged says that a server found what it has of chunks damaged.
func opDamaged(server uint32, chunks ...uint64) *pb.Op {
	return &pb.Op{Op: &pb.Op_LoseShards{LoseShards: &pb.LoseShards{Server: server, Stored: chunks, Damaged: true}}}
}

func (w *world) ownNew(op *pb.Op) *pb.Result {
	cmd := w.command(0, root, op)
	cmd.Version = VersionOf(op)
	return w.apply(cmd)
}

// TestDamagedWhileWritten: a chunk of which a shard is found damaged is sealed at what is committed. Repair sees it, and its
// writer, who has not heard of it, cannot have the shard count again.
func TestDamagedWhileWritten(t *testing.T) {
	w := newWorld(t)
	f := w.file(root, 1, "f", 0o644)
	w.want(0, w.do(root, opAlloc(3, 1, 2, 3)))
	extent := &pb.Extent{Length: 100, Chunk: 1}
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{extent}, Chunks: []*pb.ChunkCommit{all(1, 1000)}})))
	w.want(0, w.ownNew(opDamaged(2, 1)))
	c, ok := Chunk(w.s, 1)
	if shard := c.ShardOn(2); !ok || c.Owner != 0 || c.Length != 1000 || shard < 0 || c.Holds(shard) || c.Holders() != 2 {
		t.Fatalf("%+v", c)
	}
	if len(Deletions(w.s, 2, w.clock+1, 9)) > 0 {
		t.Error("what is to be replaced where it is is to be deleted")
	}
	var degraded []chunk.ID
	Degraded(w.s, 0, func(id chunk.ID) bool { degraded = append(degraded, id); return true })
	if !slices.Equal(degraded, []chunk.ID{1}) {
		t.Errorf("to be repaired: %v", degraded)
	}
	w.check()
	move := &pb.Move{Chunk: 1, Shard: uint32(c.ShardOn(2)), Server: 2}
	if res := w.want(0, w.ownNew(&pb.Op{Op: &pb.Op_StartMoves{StartMoves: &pb.StartMoves{Moves: []*pb.Move{move}}}})); len(res.Moves) != 1 {
		t.Error("it cannot be made anew in its place")
	}
	w.check()
	for _, length := range []uint64{1000, 2000} {
		w.want(syscall.EINVAL, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{extent}, Chunks: []*pb.ChunkCommit{all(1, length)}})))
	}

	if c.Writer == 0 {
		t.Error("what its writer has not committed may be lost")
	}

	// A chunk that nothing refers to is not sealed: nobody reads it.
	w.want(0, w.ownNew(opDamaged(1, 2)))
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 100, Chunk: 2}}, Chunks: []*pb.ChunkCommit{all(2, 1000)}})))
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 100, Data: bytes.Repeat([]byte("a"), 100)}}})))
	w.want(0, w.ownNew(opDamaged(1, 2)))
	if c, ok := Chunk(w.s, 2); !ok || c.Owner == 0 || c.Live != 0 || c.Holds(c.ShardOn(1)) {
		t.Errorf("%+v", c)
	}
	w.check()

	// What would not be enough without the writer's help stays open.
	w.want(0, w.do(root, opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Offset: 200, Length: 100, Chunk: 3}}, Chunks: []*pb.ChunkCommit{all(3, 1000)}})))
	for s := range uint32(3) {
		w.want(0, w.own(&pb.Op{Op: &pb.Op_LoseShards{LoseShards: &pb.LoseShards{Server: s + 1, Stored: []uint64{3}}}}))
	}
	w.want(0, w.ownNew(opDamaged(1, 3)))
	if c, _ := Chunk(w.s, 3); c.Owner == 0 || c.ShardOn(1) < 0 {
		t.Errorf("%+v", c)
	}
	w.check()
}
