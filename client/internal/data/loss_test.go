package data

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/fserr"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// watched is a context that says when somebody begins to wait with it.
type watched struct {
	context.Context
	waiting chan<- struct{}
}

func (w watched) Done() <-chan struct{} {
	select {
	case w.waiting <- struct{}{}:
	default:
	}
	return w.Context.Done()
}

// commitTogether starts n commits and returns their errors; before they can end it calls release, once all of them wait.
func commitTogether(x *fixture, f *File, n int, release func()) []error {
	results := make(chan error, n)
	for range n {
		waiting := make(chan struct{}, 1)
		go func() { results <- f.Commit(watched{x.ctx(), waiting}, true) }()
		<-waiting
	}
	release()
	errs := make([]error, n)
	for i := range errs {
		errs[i] = <-results
	}
	return errs
}

// TestEveryCommitThatLosesDataFails: of several that wait for the same data none may claim that it is safe.
func TestEveryCommitThatLosesDataFails(t *testing.T) {
	for name, fail := range map[string]func(*fixture) error{
		"refused":      func(*fixture) error { return fserr.New(syscall.EIO, "refused") },
		"session lost": func(x *fixture) error { x.meta.loseSession(); return nil },
	} {
		for _, size := range []int{100, 100_000} {
			if size == 100 && name == "session lost" {
				continue // the fake has no objection to what is inline
			}
			t.Run(name, func(t *testing.T) {
				x := newFixture(t, 3, 3, 2)
				f := x.file()
				mustWrite(t, f, pattern(size, 1), 0)
				go1 := make(chan struct{})
				x.meta.with(func(m *fakeMeta) {
					m.onCommit = func(*pb.Commit) error {
						<-go1
						m.with(func(m *fakeMeta) { m.onCommit = nil })
						return fail(x)
					}
				})
				for i, err := range commitTogether(x, f, 3, func() { close(go1) }) {
					if !errors.Is(err, syscall.EIO) {
						t.Errorf("commit %d of lost data: %v", i, err)
					}
				}
				mustCommit(t, f, true) // said by now
				mustClose(t, f)
			})
		}
	}
}

// onlyChunk returns the chunk that data of an inode was put in.
func onlyChunk(t *testing.T, w *writer, inode uint64) *openChunk {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found *openChunk
	for c := range w.chunks {
		for fr := range c.held {
			if fr.published && fr.file.inode == inode {
				found = c
			}
		}
	}
	if found == nil {
		t.Fatal("nothing is unsynced")
	}
	return found
}

func dropAll(w *writer, c *openChunk) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, tg := range c.targets {
		c.drop(tg, errors.New("found dead"))
	}
}

// TestSyncOfWhatNoDiskHas: data that was published when servers had received it is on no disk for certain once all of them
// have failed. It is written again, and a sync waits for that, whether it came before or after.
func TestSyncOfWhatNoDiskHas(t *testing.T) {
	t.Run("sync after the failure", func(t *testing.T) {
		x := newFixture(t, 4, 3, 2)
		f := x.file()
		want := pattern(50_000, 1)
		mustWrite(t, f, want, 0)
		mustClose(t, f)
		c := onlyChunk(t, x.store.writer, f.inode)
		dropAll(x.store.writer, c)
		f = x.open(f.inode)
		mustCommit(t, f, true)
		x.elsewhere(f, c)
		checkContent(t, f, want)
		mustClose(t, f)
		x.memoryGivenBack()
	})
	t.Run("sync after the session was lost", func(t *testing.T) {
		x := newFixture(t, 3, 3, 2)
		f := x.file()
		mustWrite(t, f, pattern(50_000, 1), 0)
		mustClose(t, f)
		c, w := onlyChunk(t, x.store.writer, f.inode), x.store.writer
		x.meta.loseSession()
		w.mu.Lock()
		w.followSession()
		w.mu.Unlock()
		f = x.open(f.inode)
		mustCommit(t, f, true)
		w.mu.Lock()
		for _, tg := range c.targets {
			if tg.durable < 50_000 {
				t.Errorf("server %d has %d bytes on disk", tg.server, tg.durable)
			}
		}
		w.mu.Unlock()
		mustClose(t, f)
		if x.meta.relocations != 0 {
			t.Error("it was moved")
		}
	})
	t.Run("sync after the session and the servers were lost", func(t *testing.T) {
		x := newFixture(t, 4, 3, 2)
		f := x.file()
		want := pattern(50_000, 1)
		mustWrite(t, f, want, 0)
		mustClose(t, f)
		c, w := onlyChunk(t, x.store.writer, f.inode), x.store.writer
		x.meta.loseSession()
		dropAll(w, c)
		f = x.open(f.inode)
		mustCommit(t, f, true)
		x.elsewhere(f, c)
		checkContent(t, f, want)
		mustClose(t, f)
	})
	t.Run("syncs under way", func(t *testing.T) {
		x := newFixture(t, 4, 3, 2)
		f := x.file()
		want := pattern(50_000, 1)
		mustWrite(t, f, want, 0)
		mustCommit(t, f, false)
		c := onlyChunk(t, x.store.writer, f.inode)
		for _, s := range x.servers {
			s.set(func(s *fakeServer) { s.stall = true })
		}
		for i, err := range commitTogether(x, f, 2, func() {
			dropAll(x.store.writer, c)
			for _, s := range x.servers {
				s.heal()
			}
		}) {
			if err != nil {
				t.Errorf("sync %d: %v", i, err)
			}
		}
		x.elsewhere(f, c)
		checkContent(t, f, want)
		mustClose(t, f)
	})
}

// elsewhere checks that nothing of a file is in a chunk any more.
func (x *fixture) elsewhere(f *File, c *openChunk) {
	x.t.Helper()
	r, err := x.meta.Extents(x.ctx(), f.inode, 0, 0, true)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, e := range r.Extents {
		if e.Chunk == uint64(c.id) {
			x.t.Errorf("bytes %d to %d are in chunk %v still", e.Offset, e.Offset+e.Length, c.id)
		}
	}
}

// hooked is a metadata service that does something between answering and being heard.
type hooked struct {
	*fakeMeta
	afterExtents atomic.Pointer[func()]
	commit       func(context.Context) error
	lostAnswer   error // of commits that are made
	alloc        atomic.Pointer[func()]
}

func (h *hooked) Extents(ctx context.Context, inode, off, length uint64, fresh bool) (*pb.ExtentsReply, error) {
	r, err := h.fakeMeta.Extents(ctx, inode, off, length, fresh)
	if fn := h.afterExtents.Swap(nil); fn != nil {
		(*fn)()
	}
	return r, err
}

func (h *hooked) AllocChunks(ctx context.Context, layout chunk.Layout, count int, avoid []chunk.ServerID) ([]*pb.AllocatedChunk, error) {
	if fn := h.alloc.Swap(nil); fn != nil {
		(*fn)()
	}
	return h.fakeMeta.AllocChunks(ctx, layout, count, avoid)
}

func (h *hooked) Commit(ctx context.Context, c *pb.Commit) (*pb.Result, error) {
	if h.commit != nil {
		if err := h.commit(ctx); err != nil {
			return nil, err
		}
	}
	r, err := h.fakeMeta.Commit(ctx, c)
	if err == nil && h.lostAnswer != nil {
		return nil, h.lostAnswer
	}
	return r, err
}

// TestReadDuringGrowthElsewhere: where the file ends and what is in it must be of one version. The extents of an older one
// have nothing where a newer one has data, and that is not a hole.
func TestReadDuringGrowthElsewhere(t *testing.T) {
	h := new(hooked)
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) {
		h.fakeMeta = c.Meta.(*fakeMeta)
		c.Meta = h
	})
	f := x.file()
	want := pattern(200, 1)
	mustWrite(t, f, want[:100], 0)
	mustCommit(t, f, false)
	grow := func() {
		x.meta.with(func(m *fakeMeta) {
			if _, err := m.commit(&pb.Commit{Inode: f.inode, Extents: []*pb.Extent{{Offset: 100, Length: 100, Data: want[100:]}}}); err != nil {
				t.Error(err)
			}
		})
		f.Observe(x.meta.attr(f.inode)) // somebody stats the file
	}
	h.afterExtents.Store(&grow)
	got := make([]byte, 300)
	n, _ := f.ReadAt(x.ctx(), got, 0)
	if n != 100 && n != 200 || !bytes.Equal(got[:n], want[:n]) {
		t.Errorf("%d bytes, different at %d", n, difference(got[:n], want))
	}
	mustClose(t, f)
}

// hog takes all memory for written data and returns how to give it back.
func (x *fixture) hog() (free func()) {
	var all []*[]byte
	b := x.store.buffers
	for b.budget.try(largestBuffer) {
		all = append(all, b.make(bufferClasses-1))
	}
	rest := int64(0)
	for b.budget.try(smallestBuffer) {
		rest += smallestBuffer
	}
	return func() {
		b.budget.release(rest)
		for _, p := range all {
			b.Put(p)
		}
	}
}

// starved waits until a write waits for memory.
func (x *fixture) starved() {
	b := &x.store.buffers.budget
	eventually(x.t, "a write waits for memory", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.waiting.Len() > 0
	})
}

// TestAppendIsNotTorn: what one call appends stays together, whoever commits meanwhile.
func TestAppendIsNotTorn(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	head, record := pattern(smallestBuffer-100, 1), pattern(300, 2)
	if _, err := f.Append(x.ctx(), head); err != nil {
		t.Fatal(err)
	}
	free := x.hog()
	appended := make(chan error)
	go func() {
		_, err := f.Append(x.ctx(), record)
		appended <- err
	}()
	x.starved() // the buffer is too small for all of the record
	mustCommit(t, f, false)
	x.meta.with(func(m *fakeMeta) { // another client appends
		if _, err := m.commit(&pb.Commit{Inode: f.inode, Append: true, Extents: []*pb.Extent{{Length: 3, Data: []byte("abc")}}}); err != nil {
			t.Error(err)
		}
	})
	free()
	if err := <-appended; err != nil {
		t.Fatal(err)
	}
	mustCommit(t, f, false)
	checkContent(t, f, bytes.Join([][]byte{head, []byte("abc"), record}, nil))
	mustClose(t, f)
}

// TestMemoryOfIdleWriters: buffers that others got just when a write began to wait, and then left half full, are sent too.
func TestMemoryOfIdleWriters(t *testing.T) {
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) { c.Memory = 8 << 20 })
	var held []*[]byte
	for range 8 {
		b, err := x.store.buffers.get(x.ctx(), largestBuffer)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, b)
	}
	f := x.file()
	written := make(chan error)
	want := pattern(10_000, 1)
	go func() {
		_, err := f.WriteAt(x.ctx(), want, 0)
		written <- err
	}()
	x.starved()
	x.store.relieve(0) // the writer has looked for memory by now, or finds some
	var files []*File
	for _, b := range held {
		g := x.file()
		files = append(files, g)
		g.mu.Lock()
		gen, _ := g.open(false)
		gen.builder.buf = b
		gen.end = uint64(gen.builder.write(want, 0))
		g.mu.Unlock()
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, f) {
		checkContent(t, f, want)
		mustClose(t, f)
	}
	x.memoryGivenBack()
}

// TestMemoryOfFailedWrite: a write that fails although it got a buffer leaves none behind.
func TestMemoryOfFailedWrite(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	free := x.hog()
	written := make(chan error)
	go func() {
		_, err := f.WriteAt(x.ctx(), pattern(5000, 1), 0)
		written <- err
	}()
	x.starved()
	f.mu.Lock()
	f.err = fserr.New(syscall.EDQUOT, "an earlier commit failed")
	f.mu.Unlock()
	free()
	if err := <-written; !errors.Is(err, syscall.EDQUOT) {
		t.Fatal(err)
	}
	mustClose(t, f)
	x.memoryGivenBack()
}

// TestSessionLostWhileWriteWaits: a write that had not begun to be taken when the session was lost belongs to the next one.
func TestSessionLostWhileWriteWaits(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	free := x.hog()
	written := make(chan error)
	want := pattern(50_000, 1)
	go func() {
		_, err := f.WriteAt(x.ctx(), want, 0)
		written <- err
	}()
	x.starved()
	x.meta.loseSession()
	free()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	mustCommit(t, f, true)
	checkContent(t, f, want)
	mustClose(t, f)
}

// TestOverwrittenFrameOfLostChunk: a commit moves what it cannot publish from a lost chunk to another, bytes that were
// overwritten since, and that no extent names, included.
func TestOverwrittenFrameOfLostChunk(t *testing.T) {
	x := newFixture(t, 6, 3, 2)
	f := x.file()
	w := x.store.writer
	old, want := pattern(chunk.MaxFrame, 1), pattern(chunk.MaxFrame, 2)
	mustWrite(t, f, old, 0)
	var c *openChunk
	eventually(t, "the frame is settled", func() bool {
		f.mu.Lock()
		fr := f.gens[0].frames[0]
		f.mu.Unlock()
		w.mu.Lock()
		defer w.mu.Unlock()
		c = fr.chunk
		return fr.settled
	})
	w.mu.Lock()
	w.forget(c) // what follows goes elsewhere
	w.mu.Unlock()
	mustWrite(t, f, want, 0)
	x.meta.with(func(m *fakeMeta) {
		m.onCommit = func(*pb.Commit) error {
			m.with(func(m *fakeMeta) { m.onCommit = nil })
			dropAll(w, c)
			return fserr.New(syscall.EINVAL, "sealed by repair")
		}
	})
	mustCommit(t, f, true)
	checkContent(t, f, want)
	mustClose(t, f)
}

// TestCloseOfStoreDoesNotQueue: a file that cannot be published keeps no other from it.
func TestCloseOfStoreDoesNotQueue(t *testing.T) {
	h := &hooked{commit: context.Context.Err}
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) {
		h.fakeMeta = c.Meta.(*fakeMeta)
		c.Meta = h
	})
	for _, s := range x.servers {
		s.set(func(s *fakeServer) { s.down = true })
	}
	for range 8 {
		mustWrite(t, x.file(), pattern(50_000, 1), 0)
	}
	small := x.file()
	mustWrite(t, small, pattern(50, 1), 0)
	if err := x.store.Close(); err == nil {
		t.Error("data that no server took was published")
	}
	if size := x.meta.attr(small.inode).Size; size != 50 {
		t.Errorf("the small file has %d bytes", size)
	}
}

// TestCloseAfterLoss: what was written after earlier data was lost is published all the same.
func TestCloseAfterLoss(t *testing.T) {
	x := newFixture(t, 3, 3, 2)
	f := x.file()
	mustWrite(t, f, pattern(50_000, 1), 0)
	f.mu.Lock()
	f.err = fserr.New(syscall.EDQUOT, "an earlier commit failed")
	f.mu.Unlock()
	if err := f.Close(x.ctx()); !errors.Is(err, syscall.EDQUOT) {
		t.Fatal(err)
	}
	if size := x.meta.attr(f.inode).Size; size != 50_000 {
		t.Errorf("%d bytes were published", size)
	}
}

// TestChunksOfNextSession: chunks that were asked for in one session and given in the next are not kept for nothing.
func TestChunksOfNextSession(t *testing.T) {
	h := new(hooked)
	x := newFixture(t, 3, 3, 2, func(c *StoreConfig) {
		h.fakeMeta = c.Meta.(*fakeMeta)
		c.Meta = h
	})
	lose := x.meta.loseSession
	h.alloc.Store(&lose)
	f := x.file()
	mustWrite(t, f, pattern(50_000, 1), 0)
	if err := f.Commit(x.ctx(), false); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	mustClose(t, f)
	eventually(t, "they are given up", func() bool {
		w := x.store.writer
		w.mu.Lock()
		known := map[chunk.ID]bool{}
		for c := range w.chunks {
			known[c.id] = true
		}
		w.mu.Unlock()
		idle := true
		x.meta.with(func(m *fakeMeta) {
			for id, rec := range m.chunks {
				idle = idle && (rec.owner == 0 || known[id])
			}
		})
		return idle
	})
}
