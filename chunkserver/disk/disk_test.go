package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// sizes of frames that matter: around one checksum block, and around what is read at once.
var frameSizes = rapid.OneOf(rapid.IntRange(1, 300), rapid.SampledFrom([]int{
	4096, chunk.ChecksumBlock - 1, chunk.ChecksumBlock, chunk.ChecksumBlock + 1, 3*chunk.ChecksumBlock + 17, spanMax + 1, chunk.MaxFrame,
}))

// TestModel appends, reads, seals, deletes, reopens and crashes at random and compares with byte slices.
func TestModel(t *testing.T) {
	dir := t.TempDir()
	pool := random(chunk.MaxFrame + 4096)
	id := chunk.ID(0)
	rapid.Check(t, func(t *rapid.T) {
		fs := newFaulty()
		fs.lazy = true
		opts := Options{MaxOpen: 2, Writeback: 128 << 10, FS: fs}
		d := open(t, dir, opts)
		model := map[chunk.ID][]byte{}
		defer func() {
			for c := range model { // the directory serves all runs: it stays small
				_ = d.Delete(c)
			}
			crash(d)
		}()
		writers := map[chunk.ID]*Writer{}
		any := func(m []chunk.ID) chunk.ID {
			if len(m) == 0 {
				t.Skip("none")
			}
			return rapid.SampledFrom(m).Draw(t, "chunk")
		}
		reopen := func() {
			d = open(t, dir, opts)
			clear(writers)
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				id++
				writers[id] = create(t, d, id)
				appendTo(t, writers[id], pool[:1])
				model[id] = slices.Clone(pool[:1])
			},
			"append": func(t *rapid.T) {
				c := any(sorted(writers))
				n, at := frameSizes.Draw(t, "size"), rapid.IntRange(0, 4095).Draw(t, "at")
				appendTo(t, writers[c], pool[at:at+n])
				model[c] = append(model[c], pool[at:at+n]...)
			},
			"sync": func(t *rapid.T) {
				c := any(sorted(writers))
				syncNow(t, writers[c])
				if got := writers[c].Durable(); got != uint64(len(model[c])) {
					t.Fatalf("durable %d of %d", got, len(model[c]))
				}
			},
			"finish": func(t *rapid.T) {
				c := any(sorted(writers))
				finish(t, writers[c])
				delete(writers, c)
			},
			"read": func(t *rapid.T) {
				c := any(sorted(model))
				off := rapid.IntRange(0, len(model[c])-1).Draw(t, "offset")
				n := rapid.IntRange(1, min(len(model[c])-off, chunk.MaxRead)).Draw(t, "length")
				mustRead(t, d, c, uint64(off), model[c][off:off+n])
			},
			"delete": func(t *rapid.T) {
				c := any(sorted(model))
				if err := d.Delete(c); err != nil {
					t.Fatalf("delete: %v", err)
				}
				if w := writers[c]; w != nil {
					if err := w.Append(w.Length(), chunk.Checksums(nil, pool[:1]), payload(pool[:1])); !errors.Is(err, ErrNotFound) {
						t.Fatalf("append to a deleted chunk: %v", err)
					}
					finish(t, w)
				}
				delete(writers, c)
				delete(model, c)
				if _, err := read(d, c, 0, 1); !errors.Is(err, ErrNotFound) {
					t.Fatalf("read of a deleted chunk: %v", err)
				}
			},
			"restart": func(t *rapid.T) {
				if err := d.Close(); err != nil {
					t.Fatalf("close: %v", err)
				}
				reopen()
			},
			"crash": func(t *rapid.T) {
				crash(d)
				reopen()
			},
			"": func(t *rapid.T) {
				for c, want := range model {
					if r := report(t, d, c); r.Length != uint64(len(want)) || r.Bad {
						t.Fatalf("%+v, want length %d", r, len(want))
					}
				}
				if n := d.cache.len(); n > 2 {
					t.Fatalf("%d files are kept open", n)
				}
			},
		})
	})
}

func sorted[V any](m map[chunk.ID]V) []chunk.ID {
	var ids []chunk.ID
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func TestAppendIsRefused(t *testing.T) {
	d := openT(t, t.TempDir(), Options{})
	w := create(t, d, 1)
	appendTo(t, w, []byte("abc"))
	for name, c := range map[string]struct {
		offset uint64
		sums   int
		n      int
		want   error
	}{
		"behind":       {2, 1, 1, ErrInvalid},
		"ahead":        {4, 1, 1, ErrInvalid},
		"empty":        {3, 0, 0, ErrTooLarge},
		"large":        {3, 17, chunk.MaxFrame + 1, ErrTooLarge},
		"few sums":     {3, 1, chunk.ChecksumBlock + 1, ErrInvalid},
		"many sums":    {3, 2, 1, ErrInvalid},
		"far away":     {1 << 63, 1, 1, ErrInvalid},
		"wrapped away": {^uint64(0), 1, 1, ErrInvalid},
	} {
		if err := w.Append(c.offset, make([]uint32, c.sums), payload(make([]byte, c.n))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := d.Create(1); !errors.Is(err, ErrExists) {
		t.Errorf("a second writer: %v", err)
	}
	appendTo(t, w, []byte("def"))
	finish(t, w)
	if err := w.Append(6, chunk.Checksums(nil, []byte("x")), payload([]byte("x"))); !errors.Is(err, ErrSealed) {
		t.Errorf("append after finish: %v", err)
	}
	if _, err := d.Create(1); !errors.Is(err, ErrExists) {
		t.Errorf("a writer for a sealed chunk: %v", err)
	}
	mustRead(t, d, 1, 0, []byte("abcdef"))
}

func TestChunkIsBounded(t *testing.T) {
	d := openT(t, t.TempDir(), Options{})
	w := create(t, d, 1)
	w.ix.length = chunk.MaxLength - 10 // as if so much had been appended
	if err := w.Append(w.Length(), []uint32{0}, payload(make([]byte, 11))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("beyond the largest chunk: %v", err)
	}
	w.ix.length, w.ix.frames = 0, make([]frame, chunk.MaxFrames)
	if err := w.Append(0, []uint32{0}, payload(make([]byte, 1))); !errors.Is(err, ErrTooLarge) {
		t.Errorf("more frames than an index holds: %v", err)
	}
	w.ix.frames = nil
	finish(t, w)
	if d.Has(1) {
		t.Error("a chunk without a byte is kept")
	}
}

func TestReadIsRefused(t *testing.T) {
	d := openT(t, t.TempDir(), Options{})
	w := create(t, d, 1)
	appendTo(t, w, []byte("abc"))
	finish(t, w)
	for _, c := range []struct {
		id     chunk.ID
		offset uint64
		n      int
		want   error
	}{
		{2, 0, 1, ErrNotFound}, {1, 0, 4, ErrRange}, {1, 3, 1, ErrRange}, {1, ^uint64(0), 2, ErrRange},
		{1, 0, 0, ErrInvalid}, {1, 0, -1, ErrInvalid}, {1, 0, chunk.MaxRead + 1, ErrInvalid},
	} {
		if _, err := read(d, c.id, c.offset, c.n); !errors.Is(err, c.want) {
			t.Errorf("%d bytes at %d of chunk %v: %v", c.n, c.offset, c.id, err)
		}
	}
	if report(t, d, 1).Bad {
		t.Error("a request makes a chunk bad")
	}
}

// TestAppendCost asserts what an append costs: one write each, one sync of file and directory when it must be durable.
func TestAppendCost(t *testing.T) {
	fs := newFaulty()
	d := openT(t, t.TempDir(), Options{FS: fs})
	w := create(t, d, 1)
	for range 4 {
		appendTo(t, w, random(100_000))
	}
	syncNow(t, w)
	appendTo(t, w, random(100))
	syncNow(t, w)
	syncNow(t, w)
	for op, want := range map[string]int{"create": 1, "write": 5, "sync": 2, "syncdir": 1, "read": 0} {
		if got := fs.counted(op); got != want {
			t.Errorf("%s: %d times, want %d", op, got, want)
		}
	}
	finish(t, w)
	if got := fs.counted("sync"); got != 2 {
		t.Errorf("sealing a durable chunk syncs: %d", got)
	}
}

func TestOpenCostOfSealedChunk(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, Options{})
	w := create(t, d, 1)
	want := random(500_000)
	for b := want; len(b) > 0; b = b[1000:] {
		appendTo(t, w, b[:1000])
	}
	finish(t, w)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	fs := newFaulty()
	d = openT(t, dir, Options{FS: fs})
	if got := fs.counted("read"); got != 1 {
		t.Errorf("%d reads at start for a sealed chunk", got)
	}
	mustRead(t, d, 1, 1000, want[1000:1100])
	if got := fs.counted("read"); got > 4 {
		t.Errorf("%d reads for the first read of a sealed chunk", got)
	}
	before := fs.counted("read")
	mustRead(t, d, 1, 0, want)
	if got := fs.counted("read") - before; got > 4 {
		t.Errorf("%d reads for %d bytes in 500 frames", got, len(want))
	}
	if got := fs.counted("open"); got != 2 {
		t.Errorf("%d opens", got)
	}
}

func TestReadWhileWritten(t *testing.T) {
	d := openT(t, t.TempDir(), Options{})
	w := create(t, d, 1)
	want := random(2 << 20)
	appendTo(t, w, want[:1000])
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			for {
				n := int(w.Length())
				if got, err := read(d, 1, 0, n); err != nil || !bytes.Equal(got, want[:n]) {
					t.Errorf("read %d bytes: %v", n, err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for at := 1000; at < len(want); {
		n := min(len(want)-at, 30_000)
		appendTo(t, w, want[at:at+n])
		at += n
	}
	finish(t, w)
	close(stop)
	wg.Wait()
}

func TestDeleteWhileRead(t *testing.T) {
	d := openT(t, t.TempDir(), Options{})
	want := random(100_000)
	var wg sync.WaitGroup
	for id := range chunk.ID(50) {
		w := create(t, d, id+1)
		appendTo(t, w, want)
		finish(t, w)
		wg.Go(func() {
			for {
				got, err := read(d, id+1, 0, len(want))
				if errors.Is(err, ErrNotFound) {
					return
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("read: %v", err)
					return
				}
			}
		})
		wg.Go(func() {
			if err := d.Delete(id + 1); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left := d.List(); len(left) > 0 || d.cache.len() > 0 {
		t.Errorf("%d chunks, %d open files are left", len(left), d.cache.len())
	}
	if err := d.Delete(1); err != nil {
		t.Errorf("deleting what is gone: %v", err)
	}
}

func TestDirectoriesOfOthers(t *testing.T) {
	fresh := func(t *testing.T) string {
		dir := t.TempDir()
		d := open(t, dir, Options{})
		w := create(t, d, 1)
		appendTo(t, w, []byte("abc"))
		finish(t, w)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Run("locked", func(t *testing.T) {
		dir := t.TempDir()
		openT(t, dir, Options{})
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v", err)
		}
	})
	t.Run("another cluster", func(t *testing.T) {
		d, err := Open(fresh(t), Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		other := testIdentity
		other.Cluster = ClusterID{5}
		if err := d.SetIdentity(other); !errors.Is(err, ErrCluster) {
			t.Errorf("%v", err)
		}
		if d.Identity() != testIdentity {
			t.Error("the identity changed")
		}
	})
	t.Run("newer", func(t *testing.T) {
		dir := fresh(t)
		put(t, filepath.Join(dir, identityName), []byte(`{"format":2}`))
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrNewer) {
			t.Errorf("%v", err)
		}
	})
	t.Run("garbage identity", func(t *testing.T) {
		for _, garbage := range []string{"", "{", "null", `{"format":1}`, `{"format":1,"disk_uuid":"zz"}`, strings.Repeat(" ", 1<<20)} {
			dir := fresh(t)
			put(t, filepath.Join(dir, identityName), []byte(garbage))
			if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), identityName) {
				t.Errorf("%.20q: %v", garbage, err)
			}
		}
	})
	t.Run("lost identity", func(t *testing.T) {
		dir := fresh(t)
		if err := os.Remove(filepath.Join(dir, identityName)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "missing") {
			t.Errorf("%v", err)
		}
	})
	t.Run("not empty", func(t *testing.T) {
		dir := t.TempDir()
		put(t, filepath.Join(dir, "thesis.tex"), []byte("x"))
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrForeign) {
			t.Errorf("%v", err)
		}
	})
	t.Run("not to be made", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "file")
		put(t, dir, nil)
		if _, err := Open(filepath.Join(dir, "data"), Options{}); err == nil {
			t.Error("no error")
		}
	})
}

func TestForeignFilesStay(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir, Options{})
	w := create(t, d, 0x0a)
	appendTo(t, w, []byte("abc"))
	finish(t, w)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	sub := filepath.Join(dir, chunksName, "0a")
	files := map[string][]byte{
		"notes.txt":              []byte("x"),
		"000000000000000b.chunk": contents(t, filepath.Join(sub, "000000000000000a.chunk")), // in the wrong directory
		"00000000000000.chunk":   nil,
		"000000000000010A.chunk": nil,
		"000000000000020a.chunk": []byte("garbage that is no chunk at all, however long one makes it: it has no header, nor records, nor an end"),
		"000000000000030a.chunk": contents(t, filepath.Join(sub, "000000000000000a.chunk")), // of another id
		"000000000000040a.chunk": make([]byte, 100_000),
	}
	for name, b := range files {
		put(t, filepath.Join(sub, name), b)
	}
	if err := os.Mkdir(filepath.Join(sub, "000000000000050a.chunk"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(sub, "000000000000060a.chunk")); err != nil {
		t.Fatal(err)
	}
	d = openT(t, dir, Options{})
	if st := d.Stats(); st.Chunks != 6 || st.Bad != 5 || st.Foreign != 4 {
		t.Errorf("%d chunks, %d bad, %d foreign", st.Chunks, st.Bad, st.Foreign)
	}
	mustRead(t, d, 0x0a, 0, []byte("abc"))
	for _, id := range []chunk.ID{0x020a, 0x030a, 0x040a, 0x050a, 0x060a} {
		if _, err := read(d, id, 0, 1); err == nil {
			t.Errorf("chunk %v is read", id)
		}
	}
	for name, b := range files {
		if !bytes.Equal(contents(t, filepath.Join(sub, name)), b) {
			t.Errorf("%s was changed", name)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	d := openT(t, t.TempDir(), Options{})
	w := create(t, d, 1)
	appendTo(t, w, random(chunk.MaxFrame))
	m := NewMemory(1)
	ctx, cancel := context.WithCancel(context.Background())
	var held []interface{ Free() }
	for range minMemory / chunk.MaxFrame {
		_, p, err := d.Read(ctx, m, 1, 0, chunk.MaxFrame)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, p)
	}
	done := make(chan error)
	go func() {
		_, p, err := d.Read(context.Background(), m, 1, 0, 10)
		p.Free()
		done <- err
	}()
	cancel()
	if _, _, err := d.Read(ctx, m, 1, 0, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("a read that waits for memory: %v", err)
	}
	for _, p := range held {
		p.Free()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	finish(t, w)
}
