package workload

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestContentMatchesAtEveryOffset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Stamp(rapid.Uint64().Draw(t, "stamp"))
		off := rapid.Int64Range(0, 1<<40).Draw(t, "off")
		p := make([]byte, rapid.IntRange(1, 100).Draw(t, "length"))
		s.Fill(p, off)
		for i := range p {
			var b [1]byte
			s.Fill(b[:], off+int64(i))
			if b[0] != p[i] {
				t.Fatalf("byte %d of a write differs from the same byte of its part", i)
			}
		}
		if n := s.Match(p, off); n != len(p) {
			t.Fatalf("only %d of %d bytes match", n, len(p))
		}
		at := rapid.IntRange(0, len(p)-1).Draw(t, "flipped")
		p[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if n := s.Match(p, off); n != at {
			t.Fatalf("the flipped byte %d was found at %d", at, n)
		}
	})
}

// TestAllowedAgainstModel compares the ranges with a list of what each byte may be.
func TestAllowedAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 64
		may := make([][]Stamp, size)
		for i := range may {
			may[i] = []Stamp{0}
		}
		c := &content{file: &file{}}
		low, high := int64(0), int64(0)
		for i := range rapid.IntRange(1, 20).Draw(t, "writes") {
			w := &write{seq: int64(i), off: rapid.Int64Range(0, size-1).Draw(t, "off"), stamp: stampOf(7, uint64(i))}
			w.len = rapid.Int64Range(1, size-w.off).Draw(t, "len")
			settled := rapid.Bool().Draw(t, "settled")
			c.put(w, settled)
			high = max(high, w.off+w.len)
			for b := w.off; b < w.off+w.len; b++ {
				if settled {
					may[b] = nil
				}
				may[b] = append(may[b], w.stamp)
			}
			if settled {
				low = max(low, w.off+w.len)
			}
		}
		if c.min != low || c.max != high {
			t.Fatalf("the size is in [%d,%d], want [%d,%d]", c.min, c.max, low, high)
		}
		at := int64(0)
		for _, s := range c.segments {
			if s.from != at || s.to <= s.from {
				t.Fatalf("segment [%d,%d) after %d", s.from, s.to, at)
			}
			for b := s.from; b < s.to; b++ {
				if !slices.Equal(s.stamps, may[b]) {
					t.Fatalf("byte %d may be %x, want %x", b, s.stamps, may[b])
				}
			}
			at = s.to
		}
		if at != high {
			t.Fatalf("the segments end at %d of %d", at, high)
		}
	})
}

func TestCompareFindsExactlyWhatIsWrong(t *testing.T) {
	f := &file{writes: []write{{seq: 1, off: 0, len: 1000, stamp: 11}, {seq: 2, off: 300, len: 200, stamp: 22}}, published: 1}
	c := f.content(1)
	good := make([]byte, 1000)
	Stamp(11).Fill(good, 0)
	Stamp(22).Fill(good[350:400], 350) // the write that is not settled may be there in part
	if bad := c.compare(good[37:900], 37); bad != nil {
		t.Fatalf("right bytes are called wrong: %v", bad)
	}
	wrong := slices.Clone(good)
	wrong[123] ^= 4
	clear(wrong[600:700])
	Stamp(22).Fill(wrong[800:900], 800) // there the write never was
	got := c.compare(wrong, 0)
	want := []Range{
		{123, 124, "write #1", got[0].Got},
		{600, 700, "write #1", "zeros"},
		{800, 900, "write #1", "what write #2 left"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for _, from := range []int64{0, 400, 999, 1000, 2000} {
		if bad := c.compare(append(good[min(from, 1000):], 0), from); len(bad) != 1 || bad[0].To != max(from, 1000)+1 {
			t.Errorf("a byte behind the end, read from %d on: %v", from, bad)
		}
	}
}
