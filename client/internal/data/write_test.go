package data

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// recorded returns the servers that metadata names for the chunks of a file.
func (x *fixture) recorded(f *File) [][]uint32 {
	var out [][]uint32
	r, err := x.meta.Extents(x.ctx(), f.inode, 0, 0, false)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, c := range r.Chunks {
		out = append(out, slices.DeleteFunc(c.Servers, func(s uint32) bool { return s == 0 }))
	}
	return out
}

func TestFailingTargetCostsNothing(t *testing.T) {
	faults := map[string]func(*fakeServer){
		"fails at once":         func(s *fakeServer) { s.failAfter = 0 },
		"fails after 3 frames":  func(s *fakeServer) { s.failAfter = 3 },
		"stalls":                func(s *fakeServer) { s.stall = true },
		"is full":               func(s *fakeServer) { s.full = true },
		"is down":               func(s *fakeServer) { s.down = true },
		"acknowledges in parts": func(s *fakeServer) { s.partial = true },
	}
	for name, fault := range faults {
		for _, durable := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, durable %v", name, durable), func(t *testing.T) {
				x := newFixture(t, 4, 3, 2, func(c *StoreConfig) { c.StallTimeout = 100 * time.Millisecond })
				f := x.file()
				want := pattern(12<<20, 7)
				x.servers[0].set(fault)
				for off := 0; off < len(want); off += 256 << 10 {
					mustWrite(t, f, want[off:off+256<<10], int64(off))
				}
				mustCommit(t, f, durable)
				checkContent(t, f, want)
				for _, servers := range x.recorded(f) {
					if len(servers) < 2 {
						t.Errorf("a committed chunk is on %v", servers)
					}
				}
				mustClose(t, f)
			})
		}
	}
}

// TestRescue loses so many targets after they acknowledged that too few are left: what they hold is read back from the
// last one.
func TestRescue(t *testing.T) {
	x := newFixture(t, 6, 3, 2)
	f := x.file()
	want := pattern(3<<20, 1)
	mustWrite(t, f, want, 0)
	w := x.store.writer
	settled := func() (c *openChunk, all bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		w.mu.Lock()
		defer w.mu.Unlock()
		all = true
		for _, fr := range f.gens[0].frames {
			c, all = fr.chunk, all && fr.settled && fr.buf == nil
		}
		return c, all
	}
	eventually(t, "every frame is settled", func() bool { _, all := settled(); return all })
	c, _ := settled()
	for _, tg := range c.targets[:2] {
		x.servers[tg.server-1].set(func(s *fakeServer) { s.down = true })
	}
	checkContent(t, f, want) // from the one that is left
	w.mu.Lock()
	for _, tg := range c.targets[:2] {
		c.drop(tg, errors.New("found dead"))
	}
	w.mu.Unlock()
	checkContent(t, f, want) // while it moves
	mustCommit(t, f, true)
	checkContent(t, f, want)
	for _, servers := range x.recorded(f) {
		for _, tg := range c.targets[:2] {
			if slices.Contains(servers, uint32(tg.server)) {
				t.Errorf("committed on %v, server %d is dead", servers, tg.server)
			}
		}
	}
	mustClose(t, f)
}

func TestNoServersWaitsWithinMemory(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.Memory = 8 << 20; c.StallTimeout = 50 * time.Millisecond })
	for _, s := range x.servers {
		s.set(func(s *fakeServer) { s.down = true })
	}
	f := x.file()
	want := pattern(20<<20, 3)
	ctx, cancel := context.WithCancel(x.ctx())
	go func() {
		eventually(t, "memory is full", func() bool { return x.store.buffers.budget.used() >= 8<<20 })
		cancel()
	}()
	n, err := f.WriteAt(ctx, want, 0)
	if !errors.Is(err, context.Canceled) || n == 0 || n > 8<<20 {
		t.Fatalf("%d, %v", n, err)
	}
	if used := x.store.buffers.budget.used(); used > 8<<20 {
		t.Fatalf("%d bytes used", used)
	}
	ctx, cancel = context.WithCancel(x.ctx())
	committed := make(chan error)
	go func() { committed <- f.Commit(ctx, true) }()
	cancel()
	if err := <-committed; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	checkContent(t, f, want[:n])
	// The servers come back: everything goes on, nothing is lost.
	for _, s := range x.servers {
		s.heal()
	}
	mustWrite(t, f, want[n:], int64(n))
	mustCommit(t, f, true)
	checkContent(t, f, want)
	mustClose(t, f)
	x.memoryGivenBack()
}

func TestNoChunksWaits(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	x.meta.with(func(m *fakeMeta) { m.allocErr = fserr.New(syscall.EAGAIN, "too few servers") })
	f := x.file()
	want := pattern(100_000, 3)
	mustWrite(t, f, want, 0)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := f.Commit(ctx, false); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	checkContent(t, f, want)
	x.meta.with(func(m *fakeMeta) { m.allocErr = nil })
	mustClose(t, f)
	if size := x.meta.attr(f.inode).Size; size != 100_000 {
		t.Fatalf("the committed size is %d", size)
	}
}

// TestMemoryBound writes many files that are not committed: what they have buffered is sent when memory is short.
func TestMemoryBound(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.Memory = 8 << 20 })
	var files []*File
	for i := range 300 {
		f := x.file()
		files = append(files, f)
		mustWrite(t, f, pattern(50_000, uint64(i)), 0)
		if used := x.store.buffers.budget.used(); used > 8<<20 {
			t.Fatalf("%d bytes used", used)
		}
	}
	for i, f := range files {
		mustClose(t, f)
		f = x.open(f.inode)
		checkContent(t, f, pattern(50_000, uint64(i)))
		mustClose(t, f)
	}
}

func TestSessionLost(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	clean, small, large, twice := x.file(), x.file(), x.file(), x.file()
	mustWrite(t, clean, pattern(10_000, 1), 0)
	mustCommit(t, clean, false)
	mustWrite(t, small, pattern(10, 1), 0)
	mustWrite(t, large, pattern(3<<20, 1), 0)
	mustWrite(t, twice, pattern(3<<20, 1), 0)
	x.meta.loseSession()
	eventually(t, "the writer has noticed", func() bool {
		x.store.writer.mu.Lock()
		defer x.store.writer.mu.Unlock()
		return x.store.writer.session == x.meta.SessionGen()
	})
	if _, err := large.ReadAt(x.ctx(), make([]byte, 10), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("read of lost data: %v", err)
	}
	if err := small.Commit(x.ctx(), false); !errors.Is(err, syscall.EIO) {
		t.Errorf("commit of a small file: %v", err)
	}
	if _, err := large.WriteAt(x.ctx(), []byte("x"), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write to a large file: %v", err)
	}
	if err := twice.Commit(x.ctx(), true); !errors.Is(err, syscall.EIO) {
		t.Errorf("fsync: %v", err)
	}
	for _, f := range []*File{clean, small, large, twice} {
		want := pattern(20_000, 5)
		mustWrite(t, f, want, 0)
		mustCommit(t, f, true)
		checkContent(t, f, want)
		mustClose(t, f)
	}
}

// TestSessionLostDuringCommit: whatever the commit answers, the error comes once and later writes work.
func TestSessionLostDuringCommit(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	mustWrite(t, f, pattern(100_000, 1), 0)
	x.meta.with(func(m *fakeMeta) {
		m.onCommit = func(*pb.Commit) error {
			x.meta.with(func(m *fakeMeta) { m.onCommit = nil })
			x.meta.loseSession()
			return nil
		}
	})
	if err := f.Commit(x.ctx(), false); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	want := pattern(30_000, 2)
	mustWrite(t, f, want, 0)
	mustClose(t, f)
	f = x.open(f.inode)
	checkContent(t, f, want)
	mustClose(t, f)
}

func TestCommitErrorIsSaidOnce(t *testing.T) {
	for _, size := range []int{10, 100_000} {
		x := newFixture(t, 3, 3, 2)
		f := x.file()
		mustWrite(t, f, pattern(size, 1), 0)
		x.meta.with(func(m *fakeMeta) { m.onCommit = func(*pb.Commit) error { return fserr.New(syscall.EDQUOT, "no more") } })
		if err := f.Commit(x.ctx(), false); !errors.Is(err, syscall.EDQUOT) {
			t.Fatal(err)
		}
		x.meta.with(func(m *fakeMeta) { m.onCommit = nil })
		mustCommit(t, f, true)
		checkContent(t, f, nil)
		mustClose(t, f)
	}
}

// TestRepairSealsUnderWriter: the metaserver seals a chunk that is being written; the writer goes on in another.
func TestRepairSealsUnderWriter(t *testing.T) {
	x := newFixture(t, 4, 3, 2)
	f, g := x.file(), x.file()
	want := pattern(300_000, 1)
	mustWrite(t, f, want[:100_000], 0)
	mustCommit(t, f, false)
	mustWrite(t, f, want[100_000:], 100_000)
	mustWrite(t, g, want, 0)
	x.meta.with(func(m *fakeMeta) {
		for _, rec := range m.chunks {
			if rec.length > 0 {
				rec.owner = 0
			}
		}
	})
	mustCommit(t, f, true)
	mustCommit(t, g, true)
	for _, f := range []*File{f, g} {
		checkContent(t, f, want)
		mustClose(t, f)
	}
}

// TestManyWritersShareChunks: commits of files that share a chunk arrive in any order, and none is refused for good.
func TestManyWritersShareChunks(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	x.meta.with(func(m *fakeMeta) {
		m.onCommit = func(c *pb.Commit) error {
			for range rand.IntN(200) { // the network reorders
				runtime.Gosched()
			}
			return nil
		}
	})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for k := range 8 {
				f := x.file()
				want := pattern(5000+i*1000, uint64(100*i+k))
				if _, err := f.WriteAt(x.ctx(), want, 0); err != nil {
					t.Error(err)
				}
				if err := f.Close(x.ctx()); err != nil {
					t.Error(err)
				}
				f = x.open(f.inode)
				got := make([]byte, len(want))
				if _, err := f.ReadAt(x.ctx(), got, 0); err != nil || !bytes.Equal(got, want) {
					t.Errorf("read back: %v", err)
				}
				if err := f.Close(x.ctx()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	x.meta.with(func(m *fakeMeta) {
		if len(m.chunks) > 2*spareChunks {
			t.Errorf("128 small files took %d chunks", len(m.chunks))
		}
	})
}

func TestAppendsOfTwoClients(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	for _, size := range []int{100, 50_000} {
		f := x.file()
		a, b, c := pattern(size, 1), pattern(size, 2), pattern(size, 3)
		mustWrite(t, f, a, 0)
		mustCommit(t, f, false)
		if _, err := f.Append(x.ctx(), b); err != nil {
			t.Fatal(err)
		}
		checkContent(t, f, slices.Concat(a, b))
		// Another client appends and commits first.
		x.meta.with(func(m *fakeMeta) {
			if _, err := m.commit(&pb.Commit{Inode: f.inode, Append: true, Extents: []*pb.Extent{{Length: 9, Data: []byte("elsewhere")}}}); err != nil {
				t.Fatal(err)
			}
		})
		mustCommit(t, f, true)
		checkContent(t, f, slices.Concat(a, []byte("elsewhere"), b))
		// Positional and appending writes come out in program order.
		want := slices.Concat(a, []byte("elsewhere"), b, c, a)
		if _, err := f.Append(x.ctx(), c); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, f, []byte("over"), int64(2*size))
		copy(want[2*size:], "over")
		if _, err := f.Append(x.ctx(), a); err != nil {
			t.Fatal(err)
		}
		checkContent(t, f, want)
		mustCommit(t, f, false)
		checkContent(t, f, want)
		mustClose(t, f)
	}
}

// TestDenseRandomWritesBecomeFewExtents writes every block of a range once, in random order.
func TestDenseRandomWritesBecomeFewExtents(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	want := pattern(1<<20, 1)
	for _, i := range rand.Perm(256) {
		mustWrite(t, f, want[i<<12:(i+1)<<12], int64(i)<<12)
	}
	mustCommit(t, f, false)
	checkContent(t, f, want)
	if n := len(x.meta.files[f.inode].extents); n != 1 {
		t.Errorf("%d extents", n)
	}
	mustClose(t, f)
}

// TestSparseWrites makes more extents than a commit may have, and more than are kept uncommitted.
func TestSparseWrites(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	const writes = 20_000
	for i := range writes {
		mustWrite(t, f, []byte{byte(i), byte(i >> 8)}, int64(i)*4)
	}
	eventually(t, "something is committed early", func() bool { return x.meta.attr(f.inode).Size > 0 })
	mustCommit(t, f, false)
	want := make([]byte, writes*4-2)
	for i := range writes {
		want[i*4], want[i*4+1] = byte(i), byte(i>>8)
	}
	checkContent(t, f, want)
	x.meta.with(func(m *fakeMeta) {
		if n := len(m.files[f.inode].extents); n != writes {
			t.Errorf("%d extents", n)
		}
	})
	mustClose(t, f)
}

func TestHugeExtentListIsCommittedInParts(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	var sizes []uint64
	x.meta.with(func(m *fakeMeta) {
		m.onCommit = func(c *pb.Commit) error {
			sizes = append(sizes, c.Size)
			return nil
		}
	})
	g := &generation{session: 1, done: make(chan struct{}), frozen: true, end: 3 * 20_000}
	fr := &frame{file: f, gen: g, n: 40_000, buf: nil}
	b, err := x.store.buffers.get(x.ctx(), 40_000)
	if err != nil {
		t.Fatal(err)
	}
	g.builder.buf = b
	*b = (*b)[:cap(*b)]
	copy(*b, pattern(40_000, 1))
	for i := range 20_000 {
		g.builder.segs = append(g.builder.segs, segment{off: uint64(i) * 3, n: 2, pos: 2 * i})
	}
	g.builder.fill = fr.n
	f.mu.Lock()
	f.gens = append(f.gens, g)
	f.cut(g)
	f.startCommitter()
	f.mu.Unlock()
	f.ship()
	<-g.done
	if len(sizes) != 2 || sizes[0] != 0 || sizes[1] != 60_000 {
		t.Errorf("sizes of the commits: %d", sizes)
	}
	x.meta.with(func(m *fakeMeta) {
		if n := len(m.files[f.inode].extents); n != 20_000 {
			t.Errorf("%d extents", n)
		}
	})
	mustClose(t, f)
}

// TestSyncAfterClose: what was published by close is not on disk for certain; a later fsync sees to it.
func TestSyncAfterClose(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	mustWrite(t, f, pattern(50_000, 1), 0)
	mustClose(t, f)
	f = x.open(f.inode)
	for _, s := range x.servers {
		s.set(func(s *fakeServer) {
			if s.syncs != 0 {
				t.Errorf("server %d: %d syncs", s.id, s.syncs)
			}
		})
	}
	mustCommit(t, f, true)
	for _, s := range x.servers {
		s.set(func(s *fakeServer) {
			if s.syncs != 1 {
				t.Errorf("server %d: %d syncs", s.id, s.syncs)
			}
		})
	}
	mustClose(t, f)
}

func TestInlineFallsBackToChunk(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	mustWrite(t, f, pattern(3000, 1), 0)
	// Another client makes the file larger than this one knows.
	x.meta.with(func(m *fakeMeta) {
		if _, err := m.commit(&pb.Commit{Inode: f.inode, Extents: []*pb.Extent{{Offset: 3000, Length: 4096, Data: pattern(4096, 2)}}}); err != nil {
			t.Fatal(err)
		}
	})
	mustCommit(t, f, false)
	checkContent(t, f, slices.Concat(pattern(3000, 1), pattern(4096, 2)))
	mustClose(t, f)
}

// TestWritesDuringCommit: they belong to the next one, and are seen at once.
func TestWritesDuringCommit(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	block := make(chan struct{})
	x.meta.with(func(m *fakeMeta) { m.blocked = block })
	mustWrite(t, f, pattern(10_000, 1), 0)
	first := make(chan error)
	go func() { first <- f.Commit(x.ctx(), false) }()
	eventually(t, "the commit is under way", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.gens[0].publishes
	})
	mustWrite(t, f, pattern(10_000, 2), 5000)
	want := slices.Concat(pattern(10_000, 1)[:5000], pattern(10_000, 2))
	checkContent(t, f, want)
	x.meta.with(func(m *fakeMeta) { m.blocked = nil })
	close(block)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	if size := x.meta.attr(f.inode).Size; size != 10_000 {
		t.Errorf("the first commit made %d bytes", size)
	}
	checkContent(t, f, want)
	mustClose(t, f)
	if size := x.meta.attr(f.inode).Size; size != 15_000 {
		t.Errorf("the second commit made %d bytes", size)
	}
}

// TestEverythingIsGivenBack: after Close metadata knows no chunk that is still being written.
func TestEverythingIsGivenBack(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	for i := range 5 {
		f := x.file()
		mustWrite(t, f, pattern(3<<20, uint64(i)), 0)
		mustClose(t, f)
	}
	dirty := x.file()
	mustWrite(t, dirty, pattern(100_000, 9), 0)
	if err := x.store.Close(); err != nil {
		t.Fatal(err)
	}
	x.meta.with(func(m *fakeMeta) {
		for id, rec := range m.chunks {
			if rec.owner != 0 {
				t.Errorf("chunk %v of %d bytes is not sealed", id, rec.length)
			}
		}
	})
	if size := x.meta.attr(dirty.inode).Size; size != 100_000 {
		t.Errorf("the dirty file has %d bytes", size)
	}
	if _, err := dirty.WriteAt(x.ctx(), []byte("x"), 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write after close: %v", err)
	}
}

func TestIdleChunksAreGivenBack(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.IdleTimeout = 30 * time.Millisecond })
	f := x.file()
	mustWrite(t, f, pattern(100_000, 1), 0)
	mustCommit(t, f, false)
	eventually(t, "all chunks are sealed", func() bool {
		owned := 0
		x.meta.with(func(m *fakeMeta) {
			for _, rec := range m.chunks {
				if rec.owner != 0 {
					owned++
				}
			}
		})
		return owned == 0 && x.store.writer.stats().chunks == 0
	})
	mustWrite(t, f, pattern(100_000, 2), 50_000)
	mustClose(t, f)
}

// TestLargeFileSwitchesChunks writes more than a chunk holds.
func TestLargeFileSwitchesChunks(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	p := pattern(1<<20, 1)
	const n = 70
	for i := range n {
		mustWrite(t, f, p, int64(i)<<20)
	}
	mustCommit(t, f, false)
	ext := x.meta.files[f.inode].extents
	if len(ext) > 4 {
		t.Errorf("%d extents", len(ext))
	}
	for _, e := range ext {
		if e.ChunkOffset+e.Length > chunk.MaxLength {
			t.Errorf("an extent to %d", e.ChunkOffset+e.Length)
		}
	}
	got := make([]byte, 1<<20)
	for i := range n {
		if _, err := f.ReadAt(x.ctx(), got, int64(i)<<20); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, p) {
			t.Fatalf("MiB %d: %v", i, err)
		}
	}
	mustClose(t, f)
}

// memoryGivenBack waits until no write buffer is in use.
func (x *fixture) memoryGivenBack() {
	x.t.Helper()
	defer func() {
		if x.t.Failed() {
			x.t.Logf("%d bytes are in use, %d files, %+v", x.store.buffers.budget.used(), len(x.store.list()), x.store.writer.stats())
		}
	}()
	eventually(x.t, "all memory is given back", func() bool { return x.store.buffers.budget.used() == 0 })
}
