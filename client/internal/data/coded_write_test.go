package data

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
)

// TestEachShardMissing reads a file with wide and packed chunks while one server after the other fails, in each way.
func TestEachShardMissing(t *testing.T) {
	x := newCodedFixture(t, 6, "ec=4+2", func(c *StoreConfig) { c.ReadTimeout = 20 * time.Millisecond })
	want := pattern(2<<20+300_000, 1)
	f := x.committed(want)
	for name, fault := range map[string]func(*fakeServer){
		"corrupt": func(s *fakeServer) { s.corrupt = true },
		"missing": func(s *fakeServer) { s.amnesia = true },
		"down":    func(s *fakeServer) { s.down = true },
		"stalled": func(s *fakeServer) { s.stallRead = true },
	} {
		for i, s := range x.servers {
			t.Run(fmt.Sprintf("%s on server %d", name, s.id), func(t *testing.T) {
				s.set(fault)
				x.servers[(i+1)%6].set(fault)
				x.store.reader.cache.clear()
				checkContent(t, f, want)
				x.store.reader.cache.clear()
				got := make([]byte, 100)
				if _, err := f.ReadAt(x.ctx(), got, 1<<20+200_000); err != nil || !bytes.Equal(got, want[1<<20+200_000:][:100]) {
					t.Error(err)
				}
				for _, s := range x.servers {
					s.heal()
				}
				x.forgive()
			})
		}
	}
	// What was found bad was reported by the name of the shard.
	x.meta.with(func(m *fakeMeta) {
		shards := 0
		for _, r := range m.reports {
			var server chunk.ServerID
			var id string
			if n, _ := fmt.Sscanf(r, "%d %16s", &server, &id); n == 2 {
				if stored, err := chunk.ParseID(id); err == nil && stored.Shard() >= 0 && m.chunks[stored.Chunk()].targets[stored.Shard()] == uint32(server) {
					shards++
				}
			}
		}
		if shards < 12 {
			t.Errorf("%d shards were reported of at least 12: %q", shards, m.reports)
		}
	})
	mustClose(t, f)
}

func TestTooFewShards(t *testing.T) {
	t.Parallel()
	x := newCodedFixture(t, 6, "ec=4+2", func(c *StoreConfig) { c.ReadTimeout = 20 * time.Millisecond })
	want := pattern(100_000, 1)
	f := x.committed(want)
	for _, s := range x.servers[:3] {
		s.set(func(s *fakeServer) { s.corrupt = true })
	}
	p := make([]byte, 10_000)
	if n, err := f.ReadAt(x.ctx(), p, 0); !errors.Is(err, syscall.EIO) || n != 0 {
		t.Fatalf("%d, %v", n, err)
	}
	// While as many as are needed may still be good, the reader waits for them.
	x.servers[2].set(func(s *fakeServer) { s.corrupt, s.down = false, true })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := f.ReadAt(ctx, p, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	x.servers[2].heal()
	if _, err := f.ReadAt(x.ctx(), p, 0); err != nil || !bytes.Equal(p, want[:10_000]) {
		t.Fatal(err)
	}
	mustClose(t, f)
}

// TestReadHedgesAroundStalledShard: a server that does not answer costs a read the soft timeout once, and is then left alone
// for a while.
func TestReadHedgesAroundStalledShard(t *testing.T) {
	x := newCodedFixture(t, 6, "ec=4+2", func(c *StoreConfig) { c.ReadTimeout = patience * 300 * time.Millisecond; c.CacheBytes = -1 })
	want := pattern(4<<20, 1)
	f := x.committed(want)
	r, err := x.meta.Extents(x.ctx(), f.inode, 0, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	s := x.servers[r.Chunks[0].Servers[1]-1]
	s.set(func(s *fakeServer) { s.stallRead = true })
	waited := func() (n int) {
		s.set(func(s *fakeServer) { n = s.stalled })
		return n
	}
	begin := time.Now()
	checkContent(t, f, want)
	asked := waited()
	if d := time.Since(begin); d < patience*300*time.Millisecond || d > 20*time.Second || asked == 0 {
		t.Errorf("the first read took %v and asked %d times", d, asked)
	}
	begin = time.Now()
	for range 3 {
		checkContent(t, f, want)
	}
	if n := waited(); n != asked && time.Since(begin) < slowFor/2 {
		t.Errorf("a server that was slow just now was asked %d times", n-asked)
	}
	if n := value(t, x.store.metrics.hedged); n == 0 || value(t, x.store.metrics.rebuilt) == 0 {
		t.Errorf("%d hedges", n)
	}
	s.heal()
	mustClose(t, f)
}

// TestServersDieUnderCodedWriter: up to Parity of the servers die, one way or the other, while a file is written.
func TestServersDieUnderCodedWriter(t *testing.T) {
	t.Parallel()
	faults := map[string]func(*fakeServer){
		"fail after 3 frames":  func(s *fakeServer) { s.failAfter = 3 },
		"stall":                func(s *fakeServer) { s.stall = true },
		"are full":             func(s *fakeServer) { s.full = true },
		"are down":             func(s *fakeServer) { s.down = true },
		"acknowledge in parts": func(s *fakeServer) { s.partial = true },
	}
	for name, fault := range faults {
		for _, servers := range []int{6, 8} { // with 6, what is left is enough for copies only
			durable := servers == 6
			t.Run(fmt.Sprintf("2 of %d %s, durable %v", servers, name, durable), func(t *testing.T) {
				x := newCodedFixture(t, servers, "ec=4+2", func(c *StoreConfig) { c.StallTimeout = patience * 100 * time.Millisecond })
				f := x.file()
				want := pattern(5<<20+77_777, 7)
				const step = 384 << 10
				for off := 0; off < len(want); off += step {
					if off == 4*step {
						for _, s := range x.servers[:2] {
							s.set(fault)
							if name != "acknowledge in parts" {
								x.meta.with(func(m *fakeMeta) { m.down[s.id] = true })
							}
						}
					}
					mustWrite(t, f, want[off:min(off+step, len(want))], int64(off))
				}
				checkContent(t, f, want)
				mustCommit(t, f, durable)
				x.store.reader.cache.clear()
				checkContent(t, f, want)
				r, err := x.meta.Extents(x.ctx(), f.inode, 0, 0, false)
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range r.Chunks {
					held := slices.DeleteFunc(slices.Clone(c.Servers), func(s uint32) bool { return s == 0 })
					if l := chunk.LayoutOf(c.Layout); len(held) < l.Min {
						t.Errorf("a chunk of %v is on %v", l, held)
					}
				}
				mustClose(t, f)
				x.memoryGivenBack()
			})
		}
	}
}

// TestRescueOfCode loses so many targets after they acknowledged that too few are left: what they hold is computed from what
// the others do.
func TestRescueOfCode(t *testing.T) {
	x := newCodedFixture(t, 12, "ec=4+2")
	f := x.file()
	want := pattern(3<<20+50_000, 1)
	mustWrite(t, f, want, 0)
	f.flush()
	w := x.store.writer
	settled := func() (chunks map[*openChunk]bool, all bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		w.mu.Lock()
		defer w.mu.Unlock()
		all, chunks = true, map[*openChunk]bool{}
		for _, fr := range f.gens[0].frames {
			chunks[fr.chunk] = true
			all = all && fr.settled && fr.buf == nil
		}
		return chunks, all
	}
	eventually(t, "every frame is settled", func() bool { _, all := settled(); return all })
	chunks, _ := settled()
	dead := map[uint32]bool{}
	for c := range chunks {
		for _, tg := range c.targets {
			if len(dead) < 2 {
				dead[uint32(tg.server)] = true
			}
		}
	}
	for id := range dead {
		x.servers[id-1].set(func(s *fakeServer) { s.down = true })
		x.meta.with(func(m *fakeMeta) { m.down[chunk.ServerID(id)] = true })
	}
	checkContent(t, f, want) // from those that are left
	w.mu.Lock()
	for c := range chunks {
		for _, tg := range c.targets {
			if dead[uint32(tg.server)] {
				c.drop(tg, errors.New("found dead"))
			}
		}
	}
	w.mu.Unlock()
	checkContent(t, f, want) // while it moves
	mustCommit(t, f, true)
	x.store.reader.cache.clear()
	checkContent(t, f, want)
	mustClose(t, f)
	x.memoryGivenBack()
}

// TestReadersOfCode: a shard that was not acknowledged is none.
func TestReadersOfCode(t *testing.T) {
	x := newCodedFixture(t, 6, "ec=4+2")
	x.servers[2].set(func(s *fakeServer) { s.down = true })
	f := x.file()
	mustWrite(t, f, pattern(50_000, 1), 0)
	f.flush()
	f.mu.Lock()
	fr := f.gens[0].frames[0]
	f.mu.Unlock()
	var c *openChunk
	w := x.store.writer
	eventually(t, "it is settled", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		c = fr.chunk
		return fr.settled
	})
	eventually(t, "the server that is down is given up", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return c.live() == 5
	})
	w.mu.Lock()
	readers := c.readers(fr.end())
	w.mu.Unlock()
	for shard, target := range x.meta.chunks[c.id].targets {
		if down := target == 3; (readers[shard] == 0) != down || !down && uint32(readers[shard]) != target {
			t.Errorf("shard %d was sent to server %d and is asked of %d", shard, target, readers[shard])
		}
	}
	mustClose(t, f)
}

// TestCodedAppendsWithSync: each append is coded at once, whatever its size, and on the disks of enough servers.
func TestCodedAppendsWithSync(t *testing.T) {
	x := newCodedFixture(t, 6, "ec=4+2")
	f := x.file()
	var want []byte
	for i := range 60 {
		p := pattern(1+i*i*11, uint64(i))
		if _, err := f.Append(x.ctx(), p); err != nil {
			t.Fatal(err)
		}
		want = append(want, p...)
		mustCommit(t, f, true)
		if i%10 == 0 {
			x.store.reader.cache.clear()
			checkContent(t, f, want)
		}
	}
	x.store.reader.cache.clear()
	checkContent(t, f, want)
	if wide, packed, copies := x.codedChunks(f); wide+copies > 0 || packed == 0 {
		t.Errorf("%d wide, %d packed, %d copied chunks", wide, packed, copies)
	}
	mustClose(t, f)
	x.memoryGivenBack()
}

// TestSyncOfCode: what was published without being on disk is written again once fewer shards than the minimum can be.
func TestSyncOfCode(t *testing.T) {
	for _, tc := range []struct {
		onDisk, dead int
		moves        bool
	}{{0, 1, false}, {0, 2, true}, {1, 3, true}, {4, 6, true}} {
		t.Run(fmt.Sprintf("%d on disk, %d dead", tc.onDisk, tc.dead), func(t *testing.T) {
			x := newCodedFixture(t, 12, "ec=4+2")
			f := x.file()
			want := pattern(50_000, 1)
			mustWrite(t, f, want, 0)
			mustCommit(t, f, false)
			c, w := onlyChunk(t, x.store.writer, f.inode), x.store.writer
			w.mu.Lock()
			for _, tg := range c.targets[:tc.onDisk] {
				tg.durable = c.length
			}
			for _, tg := range c.targets[:tc.dead] {
				c.drop(tg, errors.New("found dead"))
			}
			w.mu.Unlock()
			mustCommit(t, f, true)
			if n := x.meta.relocations; n > 0 != tc.moves {
				t.Errorf("%d relocations", n)
			}
			checkContent(t, f, want)
			mustClose(t, f)
		})
	}
}

// TestMediumFilesShareWideChunks: what a file leaves of its chunk the next one takes.
func TestMediumFilesShareWideChunks(t *testing.T) {
	x := newCodedFixture(t, 6, "ec=4+2")
	for i := range 30 {
		f := x.file()
		want := pattern(3<<20, uint64(i))
		mustWrite(t, f, want, 0)
		mustClose(t, f)
		f = x.open(f.inode)
		checkContent(t, f, want)
		mustClose(t, f)
	}
	x.meta.with(func(m *fakeMeta) {
		used := 0
		for _, rec := range m.chunks {
			if rec.length > 0 {
				used++
			}
		}
		if used > 5 {
			t.Errorf("30 files of 3 MiB lie in %d chunks", used)
		}
	})
}

// TestStalledShardBoundsMemory: shards that wait for one slow server count like the frames that they are of.
func TestStalledShardBoundsMemory(t *testing.T) {
	x := newCodedFixture(t, 6, "ec=4+2", func(c *StoreConfig) { c.Memory = 8 << 20 })
	x.servers[3].set(func(s *fakeServer) { s.stall = true })
	f := x.file()
	want := pattern(24<<20, 3)
	written := make(chan error)
	go func() {
		_, err := f.WriteAt(x.ctx(), want, 0)
		written <- err
	}()
	x.starved()
	// At worst all that was let in is then coded.
	if used := x.store.buffers.budget.used(); used > 8<<20+4<<20 {
		t.Errorf("%d bytes are used of %d", used, 8<<20)
	}
	x.servers[3].heal()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	mustCommit(t, f, true)
	checkContent(t, f, want)
	mustClose(t, f)
	x.memoryGivenBack()
}

// TestFullServersUnderCode: disks that are full all over are said once.
func TestFullServersUnderCode(t *testing.T) {
	x := newCodedFixture(t, 6, "ec=4+2")
	for _, s := range x.servers {
		s.set(func(s *fakeServer) { s.full = true })
	}
	f := x.file()
	mustWrite(t, f, pattern(100_000, 3), 0)
	if err := f.Commit(x.ctx(), false); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	mustClose(t, f)
	x.meta.with(func(m *fakeMeta) { m.allocErr = fserr.New(syscall.ENOSPC, "full") })
	mustWrite(t, f, pattern(100_000, 3), 0)
	if err := f.Commit(x.ctx(), false); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	mustClose(t, f)
	x.memoryGivenBack()
}
