package metaserver

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

func TestMeasure(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		free, capacity uint64
		want           shortage
	}{{300 << 20, 100 * gib, noShortage}, {255 << 20, 100 * gib, low}, {63 << 20, 100 * gib, critical}, {0, 100 * gib, critical}, {6 << 20, 100 << 20, noShortage}, {4 << 20, 100 << 20, low}, {1 << 20, 100 << 20, critical}} {
		if got := measure(c.free, c.capacity); got.short != c.want {
			t.Errorf("%d of %d free: %+v", c.free, c.capacity, got)
		}
	}
}

// The lead is given to nobody who is far behind: nothing is proposed until that one has caught up. Changes wait a while for that, and
// are refused then.
func TestNoLeadForWhoIsBehind(t *testing.T) {
	all := group(t, 3, Config{roomOf: func(string) (room, error) { return measure(1<<40, 1<<41), nil }})
	l := find(t, all)
	far := &handing{reached: 1 << 40, short: low}
	now := time.Now()
	if l.handOver(t.Context(), far, now) {
		t.Error("changes are refused though others have room and may catch up")
	}
	if !l.handOver(t.Context(), far, now.Add(handOverPatience+1)) {
		t.Error("changes wait for ever")
	}
	if find(t, all) != l {
		t.Error("another leads")
	}
}

// A metaserver short of disk refuses what needs space, takes what gives some back, and recovers by itself. What was done
// before is answered as it was.
func TestShortOfDisk(t *testing.T) {
	var free atomic.Uint64
	free.Store(1 << 40)
	s := start(t, Config{roomOf: func(string) (room, error) { return measure(free.Load(), 1<<41), nil }}).ready()
	chunkServers(t, s, 3)
	c := call(t, s.Address()).open()
	c.must(c.do(create("a")))
	data := c.must(c.do(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1}}})).Chunks[0]
	made := c.next(create("b"))
	inode := c.must(c.send(made)).Attr.Inode
	refused := func(op *pb.Op) {
		t.Helper()
		res, err := c.do(op)
		if err != nil || res.Errno != uint32(syscall.ENOSPC) || !strings.Contains(res.Message, "metaserver 1") || !strings.Contains(res.Message, "MiB free") {
			t.Errorf("%v: %v, %v", op, res, err)
		}
	}
	shortage := func(n uint64) {
		free.Store(n)
		eventually(t, "it is known", func() bool { r := s.room.Load(); return r != nil && r.free == n })
	}
	shortage(100 << 20)
	refused(create("c"))
	refused(mkdir("d"))
	refused(&pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1}}})
	if res := c.must(c.send(made)); res.Attr.Inode != inode {
		t.Errorf("asked again for what was done: %v", res)
	}
	// What is on chunk servers already can be published.
	c.must(c.do(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: inode, Size: 10, Extents: []*pb.Extent{{Length: 10, Chunk: data.Id}},
		Chunks: []*pb.ChunkCommit{{Chunk: data.Id, Length: 10, Servers: data.Servers}}}}}))
	refused(&pb.Op{Op: &pb.Op_Commit{Commit: &pb.Commit{Inode: inode, Extents: []*pb.Extent{{Length: 1, Data: []byte("x")}}}}})
	st, err := s.Status(t.Context())
	if err != nil || !strings.Contains(strings.Join(st.Problems, "\n"), "takes no changes that need space") {
		t.Errorf("%v, %v", st.Problems, err)
	}
	shortage(1 << 20)
	refused(&pb.Op{Op: &pb.Op_SetAttr{SetAttr: &pb.SetAttr{Inode: inode, MtimeNow: true}}})
	c.must(c.do(unlink("a")))
	shortage(1 << 40)
	c.must(c.do(create("c")))
}

// ENOSPC is said when the servers are up and full, not when they are down.
func TestFullServers(t *testing.T) {
	s := start(t, Config{SuspectAfter: 300 * time.Millisecond}).ready()
	servers := chunkServers(t, s, 3)
	c := call(t, s.Address()).open()
	alloc := &pb.Op{Op: &pb.Op_AllocChunks{AllocChunks: &pb.AllocChunks{Count: 1, Want: chunk.Copies(3).Proto()}}}
	errno := func(want syscall.Errno) func() bool {
		return func() bool {
			res, err := c.do(alloc)
			return err == nil && res.Errno == uint32(want)
		}
	}
	fill := func(full bool, which ...*fakeServer) {
		for _, f := range which {
			f.mu.Lock()
			f.full = full
			f.mu.Unlock()
		}
	}
	fill(true, servers[0])
	eventually(t, "one is full", func() bool { return s.lead.Load().live.Full() == 1 })
	res := c.must(c.do(alloc))
	for _, id := range res.Chunks[0].Servers {
		if id == servers[0].id {
			t.Errorf("the full server gets a chunk: %v", res)
		}
	}
	fill(true, servers[1])
	eventually(t, "two are full", errno(syscall.ENOSPC))
	fill(false, servers[0], servers[1])
	eventually(t, "they have room again", errno(0))
	for _, f := range servers[:2] {
		f.mu.Lock()
		f.pause = true
		f.mu.Unlock()
	}
	eventually(t, "two are down", errno(syscall.EAGAIN))
}

// The leader that is short of disk has one lead that is not, and no client hears of it; it refuses changes only when all are short.
func TestLeaderShortOfDiskHandsOver(t *testing.T) {
	var mu sync.Mutex
	free := map[string]uint64{} // by directory; else there is much
	all := group(t, 3, Config{roomOf: func(dir string) (room, error) {
		mu.Lock()
		defer mu.Unlock()
		n, ok := free[dir]
		if !ok {
			n = 1 << 40
		}
		return measure(n, 1<<41), nil
	}})
	short := func(r *running, n uint64) {
		mu.Lock()
		defer mu.Unlock()
		free[r.cfg.Dir] = n
	}
	var addrs []string
	for _, r := range all {
		addrs = append(addrs, r.Address())
	}
	c := call(t, addrs...).open()
	n := 0
	make := func() *pb.Result {
		t.Helper()
		n++
		res, err := c.do(create(fmt.Sprint("f", n)))
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	for range 2 { // one after the other
		was := find(t, all)
		short(was, 1<<20)
		eventually(t, "another leads", func() bool {
			if res := make(); res.Errno != 0 {
				t.Fatalf("a change is refused: %v", res)
			}
			l := find(t, all)
			return l != was
		})
	}
	short(find(t, all), 1<<20)
	eventually(t, "changes are refused", func() bool { return make().Errno == uint32(syscall.ENOSPC) })
	was := find(t, all)
	for _, r := range all {
		if r != was {
			short(r, 100<<20) // which is not quite so little
			break
		}
	}
	eventually(t, "one that is less short leads", func() bool { return find(t, all) != was })
	for _, r := range all {
		short(r, 1<<40)
	}
	eventually(t, "changes are taken", func() bool { return make().Errno == 0 })
}
