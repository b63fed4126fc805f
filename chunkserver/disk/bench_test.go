package disk

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// cpu is the CPU time of the process so far, seconds.
func cpu() float64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// BenchmarkAppend writes whole chunks of 1 MiB frames, as 16 KiB pieces, and syncs once a chunk.
func BenchmarkAppend(b *testing.B) {
	for _, writeback := range []int64{-1, 1 << 20, 8 << 20, 32 << 20} {
		b.Run(fmt.Sprintf("writeback=%d", writeback), func(b *testing.B) {
			d, err := Open(b.TempDir(), Options{Reserve: 1, Writeback: writeback})
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			if err := d.SetIdentity(testIdentity); err != nil {
				b.Fatal(err)
			}
			p := random(chunk.MaxFrame)
			sums, pieces := chunk.Checksums(nil, p), payload(p)
			b.SetBytes(chunk.MaxFrame)
			b.ReportAllocs()
			b.ResetTimer()
			start := cpu()
			var w *Writer
			id := chunk.ID(0)
			for range b.N {
				if w == nil {
					id++
					w = create(b, d, id)
				}
				if err := w.Append(w.Length(), sums, pieces); err != nil {
					b.Fatal(err)
				}
				if w.Length() == chunk.MaxLength {
					finish(b, w)
					w = nil
					if id > 16 { // keep the disk from filling
						_ = d.Delete(id - 16)
					}
				}
			}
			if w != nil {
				finish(b, w)
			}
			b.ReportMetric((cpu()-start)*1024/float64(b.N), "cpu-s/GiB")
		})
	}
}

// BenchmarkRead reads at random from a cached 64 MiB chunk.
func BenchmarkRead(b *testing.B) {
	d, err := Open(b.TempDir(), Options{Reserve: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if err := d.SetIdentity(testIdentity); err != nil {
		b.Fatal(err)
	}
	w := create(b, d, 1)
	p := random(chunk.MaxFrame)
	for range chunk.MaxLength / chunk.MaxFrame {
		appendTo(b, w, p)
	}
	finish(b, w)
	for _, n := range []int{4 << 10, 64 << 10, 1 << 20, 4 << 20} {
		b.Run(fmt.Sprintf("%d", n), func(b *testing.B) {
			m := NewMemory(256 << 20)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			start := cpu()
			for range b.N {
				off := uint64(rand.IntN(chunk.MaxLength/n)) * uint64(n)
				_, p, err := d.Read(context.Background(), m, 1, off, n)
				if err != nil {
					b.Fatal(err)
				}
				p.Free()
			}
			b.ReportMetric((cpu()-start)*(1<<30)/float64(b.N)/float64(n), "cpu-s/GiB")
		})
	}
}
