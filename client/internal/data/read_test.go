package data

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// committed makes a file that holds want and is in no cache.
func (x *fixture) committed(want []byte) *File {
	x.t.Helper()
	f := x.file()
	mustWrite(x.t, f, want, 0)
	mustCommit(x.t, f, true) // else this client could write it again
	mustClose(x.t, f)
	x.store.reader.cache.clear()
	return x.open(f.inode)
}

func (x *fixture) fetched() (reads, bytes int) {
	for _, s := range x.servers {
		s.set(func(s *fakeServer) { reads, bytes = reads+s.reads, bytes+s.readBytes })
	}
	return reads, bytes
}

func TestReadGoesToAnotherReplica(t *testing.T) {
	t.Parallel()
	faults := map[string]func(*fakeServer){
		"corrupt": func(s *fakeServer) { s.corrupt = true },
		"missing": func(s *fakeServer) { s.amnesia = true },
		"down":    func(s *fakeServer) { s.down = true },
		"stalled": func(s *fakeServer) { s.stallRead = true },
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			x := newFixture(t, 3, 3, 2)
			want := pattern(3<<20, 1)
			f := x.committed(want)
			for _, s := range x.servers[:2] {
				s.set(fault)
			}
			for i := range 4 { // whichever is asked first
				checkContent(t, f, want)
				if i%2 == 0 {
					x.store.reader.cache.clear()
				}
			}
			if name == "corrupt" || name == "missing" {
				x.meta.with(func(m *fakeMeta) {
					if len(m.reports) == 0 {
						t.Error("nothing was reported")
					}
				})
			}
			mustClose(t, f)
		})
	}
}

func TestEveryCopyBad(t *testing.T) {
	t.Parallel()
	x := newFixture(t, 3, 3, 2)
	f := x.committed(pattern(100_000, 1))
	x.servers[0].set(func(s *fakeServer) { s.corrupt = true })
	x.servers[1].set(func(s *fakeServer) { s.amnesia = true })
	x.servers[2].set(func(s *fakeServer) { s.corrupt = true })
	p := make([]byte, 1000)
	if n, err := f.ReadAt(x.ctx(), p, 0); !errors.Is(err, syscall.EIO) || n != 0 {
		t.Fatalf("%d, %v", n, err)
	}
	// While one may still have it, the reader waits for that.
	x.servers[2].set(func(s *fakeServer) { s.corrupt, s.down = false, true })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := f.ReadAt(ctx, p, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	x.servers[2].heal()
	if _, err := f.ReadAt(x.ctx(), p, 0); err != nil || !bytes.Equal(p, pattern(1000, 1)) {
		t.Fatal(err)
	}
	mustClose(t, f)
}

func TestReadWaitsForServers(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	want := pattern(100_000, 1)
	f := x.committed(want)
	for _, s := range x.servers {
		s.set(func(s *fakeServer) { s.down = true })
	}
	got := make([]byte, len(want))
	done := make(chan error)
	go func() {
		_, err := f.ReadAt(x.ctx(), got, 0)
		done <- err
	}()
	eventually(t, "it has tried", func() bool { n, _ := x.fetched(); return n > 6 })
	x.servers[1].heal()
	if err := <-done; err != nil || !bytes.Equal(got, want) {
		t.Fatal(err)
	}
	mustClose(t, f)
}

// TestChunkDeletedUnderReader: the extents that the reader has are old; those that it fetches then are not.
func TestChunkDeletedUnderReader(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.committed(pattern(50_000, 1))
	stale, err := x.meta.Extents(x.ctx(), f.inode, 0, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	want := pattern(50_000, 2)
	mustWrite(t, f, want, 0)
	mustCommit(t, f, false)
	for _, s := range x.servers {
		s.set(func(s *fakeServer) {
			for _, c := range stale.Chunks {
				id := c.Id
				for k := range s.chunks {
					if uint64(k) == id {
						s.chunks[k] = s.chunks[k][50_000:]
					}
				}
			}
		})
	}
	cached := &staleMeta{fakeMeta: x.meta, stale: stale}
	x.store.meta = cached
	defer func() { x.store.meta = x.meta }()
	for _, s := range x.servers {
		s.set(func(s *fakeServer) { s.amnesia = true })
	}
	cached.refreshed = func() {
		for _, s := range x.servers {
			s.heal()
			s.set(func(s *fakeServer) {
				for k, b := range s.chunks {
					s.chunks[k] = append(make([]byte, 50_000), b...)
				}
			})
		}
	}
	got := make([]byte, 50_000)
	if _, err := f.ReadAt(x.ctx(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatal(err)
	}
	if cached.fresh == 0 {
		t.Error("the extents were not fetched again")
	}
	mustClose(t, f)
}

// staleMeta answers with old extents until it is asked for fresh ones.
type staleMeta struct {
	*fakeMeta
	stale     *pb.ExtentsReply
	fresh     int
	refreshed func()
}

func (m *staleMeta) Extents(ctx context.Context, inode, off, length uint64, fresh bool) (*pb.ExtentsReply, error) {
	if !fresh {
		return m.stale, nil
	}
	if m.fresh++; m.fresh == 1 {
		m.refreshed()
	}
	return m.fakeMeta.Extents(ctx, inode, off, length, fresh)
}

func TestReadCancelled(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.committed(pattern(100_000, 1))
	for _, s := range x.servers {
		s.set(func(s *fakeServer) { s.stallRead = true })
	}
	ctx, cancel := context.WithCancel(x.ctx())
	done := make(chan error)
	go func() {
		_, err := f.ReadAt(ctx, make([]byte, 1000), 0)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	mustClose(t, f)
}

// askOnce has no second replica asked beside one that is slow, as all are on a busy machine: that fetches the same twice.
func askOnce(c *StoreConfig) { c.ReadTimeout = time.Minute }

// TestRandomReadsFetchLittle: a cold small read takes no more than it must; a second one nearby takes the whole block.
func TestRandomReadsFetchLittle(t *testing.T) {
	x := newFixture(t, 3, 3, 2, askOnce)
	want := pattern(8<<20, 1)
	f := x.committed(want)
	read := func(off int) {
		t.Helper()
		got := make([]byte, 4096)
		if _, err := f.ReadAt(x.ctx(), got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+4096]) {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		read((1 + i*2) * cacheBlock)
	}
	if reads, n := x.fetched(); reads != 50 || n != 50*4096 {
		t.Errorf("50 reads of 4 KiB took %d of %d bytes", reads, n)
	}
	for _, i := range []int{9, 3, 12, 0, 15, 7} {
		read(cacheBlock + i*4096)
	}
	if reads, n := x.fetched(); reads != 51 || n != 50*4096+cacheBlock {
		t.Errorf("6 reads of one block more: %d of %d bytes", reads, n)
	}
	mustClose(t, f)
}

// TestSequentialReadsAhead: what a sequential reader wants is fetched once, and before it asks.
func TestSequentialReadsAhead(t *testing.T) {
	x := newFixture(t, 3, 3, 2, askOnce)
	want := pattern(8<<20, 1)
	f := x.committed(want)
	got := make([]byte, 128<<10)
	for off := 0; off < len(want); off += len(got) {
		if _, err := f.ReadAt(x.ctx(), got, int64(off)); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, want[off:off+len(got)]) {
			t.Fatalf("at %d: %v", off, err)
		}
		if off == 1<<20 {
			eventually(t, "data is read ahead", func() bool { return x.store.reader.cache.used() > 2<<20 })
		}
	}
	if _, n := x.fetched(); n > len(want)+4*cacheBlock {
		t.Errorf("%d bytes were fetched", n)
	}
	mustClose(t, f)
}

func TestCacheIsBounded(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.CacheBytes = 2 << 20 })
	want := pattern(8<<20, 1)
	f := x.committed(want)
	for range 3 {
		checkContent(t, f, want)
		if used := x.store.reader.cache.used(); used > 2<<20 {
			t.Fatalf("%d bytes cached", used)
		}
	}
	mustClose(t, f)
}

// TestConcurrentReads: readers of the same and of neighbouring ranges never see each other's buffers.
func TestConcurrentReads(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.CacheBytes = 1 << 20 })
	want := pattern(4<<20, 1)
	f := x.committed(want)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				n := rand.IntN(200_000) + 1
				off := rand.IntN(len(want) - n)
				got := make([]byte, n)
				if _, err := f.ReadAt(x.ctx(), got, int64(off)); err != nil || !bytes.Equal(got, want[off:off+n]) {
					t.Errorf("%d bytes at %d: %v", n, off, err)
					return
				}
			}
		})
	}
	wg.Wait()
	mustClose(t, f)
}

func TestDamagedExtents(t *testing.T) {
	ext := &pb.Extent{Offset: 0, Length: 100, Chunk: 7, ChunkOffset: 50}
	for name, r := range map[string]*pb.ExtentsReply{
		"beyond the chunk":  {Extents: []*pb.Extent{ext}, Chunks: []*pb.ChunkInfo{{Id: 7, Length: 149, Servers: []uint32{1}}}},
		"without its place": {Extents: []*pb.Extent{ext}},
		"far beyond":        {Extents: []*pb.Extent{{Length: 100, Chunk: 7, ChunkOffset: 1<<64 - 50}}, Chunks: []*pb.ChunkInfo{{Id: 7, Length: 149, Servers: []uint32{1}}}},
		"inline":            {Extents: []*pb.Extent{{Length: 10, Data: []byte("short")}}},
	} {
		if _, err := resolve(r, span{0, 100}, make([]byte, 100), 0, nil); !errors.Is(err, syscall.EIO) || strings.TrimSpace(err.Error()) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDisorderedExtents: an answer that cannot be right does no harm.
func TestDisorderedExtents(t *testing.T) {
	for range 2000 {
		r := &pb.ExtentsReply{Chunks: []*pb.ChunkInfo{{Id: 7, Length: 1 << 20, Servers: []uint32{1}}}}
		for range rand.IntN(6) {
			e := &pb.Extent{Offset: rand.Uint64N(300), Length: rand.Uint64N(200), Chunk: 7}
			if rand.IntN(10) == 0 {
				e.Offset, e.Length = rand.Uint64(), rand.Uint64()
			}
			r.Extents = append(r.Extents, e)
		}
		_, _ = resolve(r, span{50, 250}, make([]byte, 200), 50, nil)
	}
}
