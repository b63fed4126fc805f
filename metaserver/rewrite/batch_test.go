package rewrite

import (
	"context"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/posix"
	"github.com/shoalfs/shoalfs/metaserver/namespace"
)

// TestBatches: whatever extents are given, and however they share bytes, all of them are in batches that one command can name:
// each byte is in the batch that its block is listed in, ranges do not overlap, and all fits.
func TestBatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type byteOf struct {
			at    namespace.FileBlock
			chunk chunk.ID
			off   uint64
		}
		want := map[byteOf]int{} // how often: ends of extents stand for all that is in them
		have := map[byteOf]int{}
		b := newBuilder(func(_ context.Context, b *batch) error {
			if len(b.spans) > namespace.MaxRewriteRanges || len(b.blocks) > namespace.MaxRewriteBlocks || len(b.extents) != len(b.blocks) {
				t.Fatalf("%d spans, %d blocks", len(b.spans), len(b.blocks))
			}
			var bytes uint64
			seen := map[chunk.ID][]span{}
			for _, s := range b.spans {
				bytes += s.len()
				for _, o := range seen[s.chunk] {
					if o.from < s.to && s.from < o.to {
						t.Fatalf("%v and %v overlap", s, o)
					}
				}
				seen[s.chunk] = append(seen[s.chunk], s)
			}
			l := b.layout(b.want)
			if bytes != b.bytes || bytes == 0 || l.Check(true) != nil || l.Padded(int(bytes)) > chunk.MaxLength {
				t.Fatalf("%d bytes, counted %d, as %v in cells of %d", bytes, b.bytes, l, l.Cell)
			}
			for p := range want {
				listed := false
				for _, at := range b.blocks {
					listed = listed || at == p.at
				}
				for _, s := range seen[p.chunk] {
					if listed && s.from <= p.off && p.off < s.to {
						have[p]++
					}
				}
			}
			return nil
		})
		layouts := []chunk.Layout{copies3, ec42, ec21}
		for inode := range rapid.Uint64Range(1, 6).Draw(t, "files") {
			at := namespace.FileBlock{Inode: inode + 1, Number: rapid.Uint64Range(0, 2).Draw(t, "block")}
			var list []namespace.Extent
			off := at.Number * posix.ExtentBlock
			for range rapid.IntRange(1, 8).Draw(t, "extents") {
				e := namespace.Extent{Offset: off, Chunk: chunk.ID(rapid.IntRange(1, 4).Draw(t, "chunk")), ChunkOffset: rapid.Uint64Range(0, 32<<20).Draw(t, "offset")}
				e.Length = rapid.SampledFrom([]uint64{1, 4096, 1 << 20, 20 << 20, 32 << 20}).Draw(t, "length")
				off += e.Length
				want[byteOf{at, e.Chunk, e.ChunkOffset}]++
				want[byteOf{at, e.Chunk, e.ChunkOffset + e.Length - 1}]++
				list = append(list, e)
			}
			if err := b.add(t.Context(), rapid.SampledFrom(layouts).Draw(t, "layout"), at, len(list), list); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for p := range want {
			if have[p] == 0 {
				t.Fatalf("%+v is in no batch", p)
			}
		}
	})
}

// TestManyRanges: more ranges or blocks than one command takes make several batches.
func TestManyRanges(t *testing.T) {
	batches, spans := 0, 0
	b := newBuilder(func(_ context.Context, b *batch) error {
		batches++
		spans += len(b.spans)
		return nil
	})
	for i := range uint64(10000) {
		at := namespace.FileBlock{Inode: i + 1}
		if err := b.add(t.Context(), copies3, at, 1, []namespace.Extent{{Length: 10, Chunk: 7, ChunkOffset: i * 20}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if batches != 3 || spans != 10000 || b.bytes != 100000 {
		t.Errorf("%d batches, %d spans, %d bytes", batches, spans, b.bytes)
	}
}

func TestCells(t *testing.T) {
	for _, c := range []struct {
		want        chunk.Layout
		bytes, wide uint64
		cell        int
	}{
		{copies3, 60 << 20, 60 << 20, 0}, {ec42, 60 << 20, 60 << 20, 256 << 10}, {ec42, 60 << 20, 10 << 20, chunk.PackedCell},
		{ec42, 2<<20 + 1, 2 << 20, chunk.PackedCell}, {ec42, 2 << 20, 2 << 20, 256 << 10}, {ec21, 100, 0, chunk.PackedCell},
	} {
		b := &batch{want: c.want, bytes: c.bytes, wide: c.wide}
		if l := b.layout(c.want); l.Cell != c.cell {
			t.Errorf("%+v: cells of %d", c, l.Cell)
		}
	}
}
