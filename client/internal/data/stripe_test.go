package data

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// drawLayout returns a code and a cell for it.
func drawLayout(t *rapid.T) chunk.Layout {
	l := chunk.Layout{Data: rapid.IntRange(2, 12).Draw(t, "data"), Parity: rapid.IntRange(1, 6).Draw(t, "parity")}.WithMin(0)
	l.Cell = rapid.SampledFrom([]int{chunk.MinCell, chunk.PackedCell, 3 * chunk.MinCell, 16 << 10, 64 << 10, 68 << 10, l.WideCell()}).Draw(t, "cell")
	return l
}

// codeOf deals bytes out to shards in the most obvious way, zeros behind them.
func codeOf(t interface{ Fatal(...any) }, l chunk.Layout, b []byte) [][]byte {
	b = append(slices.Clone(b), make([]byte, l.Padded(len(b))-len(b))...)
	shards := make([][]byte, l.Width())
	for i := range shards {
		shards[i] = make([]byte, len(b)/l.Data)
	}
	l.Scatter(shards[:l.Data], b)
	if err := l.Encode(shards); err != nil {
		t.Fatal(err)
	}
	return shards
}

// checkOften is rapid.Check for what takes little time.
func checkOften(t *testing.T, prop func(*rapid.T)) {
	for range 10 / patience {
		rapid.Check(t, prop)
	}
}

// TestStripe: what targets are sent of a frame is its code, with checksums, and all memory comes back.
func TestStripe(t *testing.T) {
	checkOften(t, func(t *rapid.T) {
		l := drawLayout(t)
		n := rapid.OneOf(rapid.IntRange(1, 9000), rapid.IntRange(1, chunk.MaxFrame), rapid.IntRange(chunk.MaxFrame-2, chunk.MaxFrame)).Draw(t, "bytes")
		p := newBuffers(64<<20, nil)
		for _, dirt := range []byte{0xff, 0xaa} { // buffers have been used before
			for size := smallestBuffer; size <= largestBuffer; size <<= 1 {
				b := p.pools.Get(size)
				for i := range *b {
					(*b)[i] = dirt
				}
				p.pools.Put(b)
			}
		}
		want := pattern(n, rapid.Uint64().Draw(t, "seed"))
		b := p.force(n)
		copy(*b, want)
		fr := &frame{file: &File{s: &Store{buffers: p}}, n: n, sums: chunk.Checksums(nil, want)}
		fr.keep(b)
		fr.cut = newStripe(fr, l)
		for i, shard := range codeOf(t, l, want) {
			fr.cut.refs.Add(1)
			head := new(pb.AppendHeader)
			d := load{cut: fr.cut, shard: i}
			body, err := d.open(head)
			if err != nil {
				t.Fatal(err)
			}
			if got := body.Materialize(); !bytes.Equal(got, shard) {
				t.Fatalf("%v, cells of %d, %d bytes: shard %d differs at %d", l, l.Cell, n, i, difference(got, shard))
			}
			if !slices.Equal(head.Checksums, chunk.Checksums(nil, shard)) {
				t.Fatalf("%v, cells of %d, %d bytes: wrong checksums of shard %d", l, l.Cell, n, i)
			}
			d.close()
		}
		fr.uncut()
		fr.free()
		if used := p.budget.used(); used != 0 {
			t.Fatalf("%d bytes are in use", used)
		}
	})
}

// TestFullFrameIsNotCopied: only its parity needs memory.
func TestFullFrameIsNotCopied(t *testing.T) {
	p := newBuffers(64<<20, nil)
	b := p.force(chunk.MaxFrame)
	fr := &frame{file: &File{s: &Store{buffers: p}}, n: chunk.MaxFrame, sums: chunk.Checksums(nil, *b)}
	fr.keep(b)
	l, err := chunk.ParseLayout("ec=4+2")
	if err != nil {
		t.Fatal(err)
	}
	s := newStripe(fr, cellFor(l, fr.n))
	s.encode()
	if s.size != chunk.MaxFrame/2 {
		t.Errorf("%d bytes beside the frame", s.size)
	}
	s.release()
	fr.free()
	if used := p.budget.used(); used != 0 {
		t.Errorf("%d bytes are in use", used)
	}
}

func TestCellFor(t *testing.T) {
	for _, tc := range []struct {
		policy string
		n      int
		wide   bool
	}{
		{"ec=4+2", chunk.MaxFrame, true}, {"ec=4+2", chunk.MaxFrame - 1, true}, {"ec=4+2", chunk.MaxFrame / 8 * 7, false}, {"ec=4+2", 1, false},
		{"ec=3+2", chunk.MaxFrame, true}, {"ec=28+4", chunk.MaxFrame, true}, {"ec=31+1", chunk.MaxFrame, true}, {"ec=20+4", 950_000, true}, {"ec=20+4", 900_000, false},
	} {
		l, err := chunk.ParseLayout(tc.policy)
		if err != nil {
			t.Fatal(err)
		}
		got := cellFor(l, tc.n)
		if wide := got.Cell == l.WideCell(); wide != tc.wide || !wide && got.Cell != chunk.PackedCell || got.Check(true) != nil {
			t.Errorf("%s, a frame of %d bytes: cells of %d", tc.policy, tc.n, got.Cell)
		}
	}
	if l := chunk.Copies(3); cellFor(l, 100) != l || !cellFor(chunk.Layout{}, 100).IsZero() {
		t.Error("copies have no cells")
	}
}
