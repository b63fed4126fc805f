package data

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// codedChunks returns the layouts of the chunks that hold a file.
func (x *fixture) codedChunks(f *File) (wide, packed, copies int) {
	x.t.Helper()
	r, err := x.meta.Extents(x.ctx(), f.inode, 0, 0, false)
	if err != nil {
		x.t.Fatal(err)
	}
	for _, c := range r.Chunks {
		switch l := chunk.LayoutOf(c.Layout); {
		case !l.Coded():
			copies++
		case l.Cell == chunk.PackedCell:
			packed++
		default:
			wide++
		}
	}
	return wide, packed, copies
}

func TestCodedRoundTrip(t *testing.T) {
	for _, policy := range []string{"ec=4+2", "ec=3+2", "ec=2+1", "ec=5+3,min-copies=5"} {
		for _, size := range []int{4097, 10_000, 100_000, 1<<20 - 1000, 1 << 20, 5<<20 + 123} {
			for _, durable := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %d bytes, durable %v", policy, size, durable), func(t *testing.T) {
					x := newCodedFixture(t, 9, policy)
					f := x.file()
					want := pattern(size, uint64(size))
					mustWrite(t, f, want, 0)
					checkContent(t, f, want)
					mustCommit(t, f, durable)
					checkContent(t, f, want)
					mustClose(t, f)
					f = x.open(f.inode)
					x.store.reader.cache.clear()
					checkContent(t, f, want)
					for range 3 {
						at := size / 3
						got := make([]byte, min(5000, size-at))
						x.store.reader.cache.clear()
						if _, err := f.ReadAt(x.ctx(), got, int64(at)); err != nil || !bytes.Equal(got, want[at:at+len(got)]) {
							t.Fatalf("read at %d: %v", at, err)
						}
					}
					wide, packed, copies := x.codedChunks(f)
					if copies > 0 || (wide > 0) != (size > 1<<20-100_000) || (packed > 0) != (size%(1<<20) < 1<<20-100_000 && size != 1<<20) {
						t.Errorf("%d wide, %d packed, %d copied chunks", wide, packed, copies)
					}
					mustClose(t, f)
					x.memoryGivenBack()
				})
			}
		}
	}
}
