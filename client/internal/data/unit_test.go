package data

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/mem"
	"pgregory.net/rapid"
)

func TestBudgetServesInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &budget{free: 10, size: 10}
		ctx, cancel := context.WithCancel(t.Context())
		if err := b.acquire(ctx, 8, nil); err != nil {
			t.Fatal(err)
		}
		asked := 0
		got := make(chan int, 3)
		go func() {
			if err := b.acquire(ctx, 9, func(int64) { asked++ }); err == nil {
				t.Error("a cancelled waiter got memory")
			}
			got <- 0
		}()
		synctest.Wait()
		go func() { _ = b.acquire(context.Background(), 1, nil); got <- 1 }()
		synctest.Wait()
		select {
		case i := <-got:
			t.Fatalf("%d overtook", i)
		default:
		}
		cancel()
		synctest.Wait()
		if <-got+<-got != 1 || asked != 1 || b.used() != 9 {
			t.Fatalf("used %d, asked %d times", b.used(), asked)
		}
		b.release(9)
		if b.used() != 0 {
			t.Fatal(b.used())
		}
	})
}

func TestBuffersKeepTheirClass(t *testing.T) {
	p := newBuffers(8<<20, nil)
	for _, n := range []int{1, 4096, 4097, 65536, 65537, 1 << 20} {
		b, err := p.get(context.Background(), n)
		if err != nil || len(*b) < n {
			t.Fatal(len(*b), err)
		}
		*b = (*b)[:n]
		fr := &frame{file: &File{s: &Store{buffers: p}}}
		fr.keep(b)
		used := fr.payload()
		fr.free()
		used.Free()
		if p.budget.used() != 0 {
			t.Fatalf("%d bytes are in use after a buffer of %d", p.budget.used(), n)
		}
	}
	if _, err := p.get(context.Background(), smallestBuffer); err != nil {
		t.Fatal(err)
	}
	b := p.force(10)
	if len(*b) != 10 || p.budget.used() != 2*smallestBuffer {
		t.Fatal(len(*b), p.budget.used())
	}
}

// TestBuilderAndOverlay compares frames and what lies under them with a byte array.
func TestBuilderAndOverlay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 3000
		want, have := make([]byte, size), make([]byte, size)
		written := make([]bool, size)
		var over overlay
		bytesOf := map[*frame][]byte{}
		buf := make([]byte, 700)
		b := builder{buf: &buf}
		cut := func() {
			if !b.sorted() {
				sorted := make([]byte, 700)
				b.sortInto(sorted)
				b.buf = &sorted
			}
			fr := new(frame)
			bytesOf[fr] = (*b.buf)[:b.fill]
			over.put(fr, b.segs)
			fresh := make([]byte, 700)
			b = builder{buf: &fresh}
		}
		for range rapid.IntRange(1, 60).Draw(t, "writes") {
			n := rapid.IntRange(1, 400).Draw(t, "n")
			off := rapid.IntRange(0, size-n).Draw(t, "off")
			p := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "p")
			copy(want[off:], p)
			for i := range n {
				written[off+i] = true
			}
			for len(p) > 0 {
				k := b.write(p, uint64(off))
				p, off = p[k:], off+k
				if len(p) > 0 {
					cut()
				}
			}
		}
		cut()
		for i := 1; i < len(over); i++ {
			if over[i].off < over[i-1].end() {
				t.Fatalf("entries %d and %d overlap", i-1, i)
			}
		}
		covered := make([]bool, size)
		rest := cover([]span{{0, size}}, len(over), func(i int) span { return span{over[i].off, over[i].end()} }, func(i int, s span) {
			e := over[i]
			copy(have[s.lo:s.hi], bytesOf[e.fr][e.pos+int(s.lo-e.off):])
			for k := s.lo; k < s.hi; k++ {
				covered[k] = true
			}
		})
		for _, s := range rest {
			for k := s.lo; k < s.hi; k++ {
				if covered[k] {
					t.Fatalf("%d is covered and missing", k)
				}
				covered[k] = true
				if written[k] {
					t.Fatalf("%d was written and is missing", k)
				}
			}
		}
		if !bytes.Equal(want, have) {
			t.Fatalf("the first difference is at %d", difference(want, have))
		}
	})
}

// TestCacheAgainstModel inserts ranges and looks others up: what is found is right, and everything fits.
func TestCacheAgainstModel(t *testing.T) {
	truth := pattern(4*cacheBlock, 1)
	rapid.Check(t, func(t *rapid.T) {
		c := newCache(cacheShards * (cacheBlock + cacheBlock/2))
		for range 40 {
			lo := rapid.IntRange(0, len(truth)-1).Draw(t, "lo")
			hi := min(len(truth), lo+rapid.OneOf(rapid.IntRange(1, 5000), rapid.IntRange(1, 2*cacheBlock)).Draw(t, "n"))
			if rapid.Bool().Draw(t, "insert") {
				f := c.begin(1, uint64(lo), uint64(hi))
				var payload mem.BufferSlice
				for at := lo; at < hi; {
					k := min(hi-at, rapid.IntRange(1, 40_000).Draw(t, "piece"))
					payload = append(payload, mem.Copy(truth[at:at+k], mem.DefaultBufferPool()))
					at += k
				}
				c.end(1, f, payload)
				payload.Free()
				continue
			}
			eachBlock(uint64(lo), uint64(hi), func(index uint32, from, to int) {
				got := make([]byte, to-from)
				hit, f, _ := c.lookup(block{1, index}, from, to, got)
				if f != nil {
					t.Fatal("a fetch is under way that has ended")
				}
				at := int(index)*cacheBlock + from
				if hit && !bytes.Equal(got, truth[at:at+len(got)]) {
					t.Fatalf("block %d, [%d, %d): wrong bytes", index, from, to)
				}
			})
			if c.used() > cacheShards*2*cacheBlock {
				t.Fatalf("%d bytes", c.used())
			}
		}
		c.clear()
		if c.used() != 0 {
			t.Fatalf("%d bytes in an empty cache", c.used())
		}
	})
}

func TestReadaheadFindsSequentialReaders(t *testing.T) {
	const size = 100 << 20
	var r readahead
	if s := r.advance(5<<20, 4096, size); s != (span{}) {
		t.Errorf("one read somewhere reads ahead %v", s)
	}
	if s := r.advance(0, 128<<10, size); s != (span{128 << 10, 2 << 20}) {
		t.Errorf("the start of the file reads ahead %v", s)
	}
	var ahead, windows uint64
	for off := uint64(128 << 10); off < 50<<20; off += 128 << 10 {
		if s := r.advance(off, 128<<10, size); s.hi > s.lo {
			windows = max(windows, s.hi-off)
			if ahead != 0 && s.lo != ahead {
				t.Fatalf("a gap or overlap: %v after %d", s, ahead)
			}
			ahead = s.hi
		}
		if off > 2<<20 && ahead < off+128<<10 {
			t.Fatalf("at %d only %d are read ahead", off, ahead)
		}
	}
	if windows < aheadMax/2 || windows > aheadMax+2<<20 {
		t.Errorf("the window grew to %d", windows)
	}
	if s := r.advance(size-4096, 4096, size); s.hi > size {
		t.Errorf("beyond the end: %v", s)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := NewStore(StoreConfig{}); err == nil || errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
