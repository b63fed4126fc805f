package namespace

import (
	"fmt"
	"syscall"
	"testing"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// BenchmarkCreate makes files of 4 KiB: a MakeNode and a Commit each.
func BenchmarkCreate(b *testing.B) {
	w := newBench(b)
	dir := w.mkdir(root, 1, "d", 0o755)
	data := make([]byte, 4096)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f := w.want(0, w.quick(opMake(dir, fmt.Sprint("file-", i), syscall.S_IFREG|0o644))).Attr.Inode
		w.want(0, w.quick(opCommit(&pb.Commit{Inode: f, Extents: []*pb.Extent{{Length: 4096, Data: data}}})))
	}
}

func BenchmarkUnlink(b *testing.B) {
	w := newBench(b)
	dir := w.mkdir(root, 1, "d", 0o755)
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprint("file-", i)
		w.want(0, w.quick(opMake(dir, name, syscall.S_IFREG|0o644)))
		w.want(0, w.quick(opUnlink(dir, name)))
	}
}

// BenchmarkRandomWrite commits 4 KiB at random places of a block that has many extents already.
func BenchmarkRandomWrite(b *testing.B) {
	w := newBench(b)
	f := w.file(root, 1, "f", 0o644)
	w.want(0, w.quick(opAlloc(1, 1, 2, 3)))
	commit := func(i uint64, n int) {
		c := &pb.Commit{Inode: f, Chunks: []*pb.ChunkCommit{all(1, 64<<20)}}
		for range n {
			i = i*6364136223846793005 + 1442695040888963407
			c.Extents = append(c.Extents, &pb.Extent{Offset: i >> 50 << 12, Length: 4096, Chunk: 1, ChunkOffset: i >> 40 % 16000 << 12})
		}
		w.want(0, w.quick(opCommit(c)))
	}
	commit(1, 16000)
	b.ResetTimer()
	for i := uint64(0); b.Loop(); i++ {
		commit(i, 16)
	}
}

// BenchmarkRepair applies what the leader puts into one command of a repair, 256 fixes: a sum, an index and a lost file by turns.
func BenchmarkRepair(b *testing.B) {
	const fixes = 256
	w := newBench(b)
	dir := w.mkdir(root, 1, "d", 0o755)
	files := make([]uint64, 3*fixes)
	for i := range files {
		files[i] = w.file(root, dir, fmt.Sprint("file-", i), 0o644)
	}
	for i := 0; b.Loop(); i++ {
		var list []*pb.StateFix
		for j := range uint64(fixes) {
			f := files[(uint64(i)*fixes+j)%uint64(len(files))]
			switch j % 3 {
			case 0:
				list = append(list, addFix(pb.StateFix_ALLOCATED, f, 1, 0))
			case 1:
				w.s.set(bDegraded, key8(f), present)
				list = append(list, indexFix(bDegraded, key8(f), 0))
			case 2:
				list = append(list, &pb.StateFix{Kind: pb.StateFix_ATTACH, Id: f, Links: 1, Seen: w.attr(f).Version})
			}
		}
		op := opRepair(w.index, 0, list...)
		w.want(0, w.repair(op))
	}
}

func newBench(b *testing.B) *world {
	w := newWorld(b)
	w.s.fast = true
	return w
}

// quick applies an operation as a metaserver would.
func (w *world) quick(op *pb.Op) *pb.Result {
	Touched(w.s, op)
	w.seq++
	w.index++
	cmd := w.command(w.session, root, op)
	cmd.Sequence, cmd.Unanswered = w.seq, w.seq
	res := Apply(w.s, w.index, cmd)
	w.s.undo = w.s.undo[:0]
	return res
}
