package data

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
)

// benchPolicies are compared by what a client spends on them: the servers keep everything in memory, at the other end of a
// loopback connection.
var benchPolicies = []string{"replicas=3", "ec=4+2", "ec=3+2"}

// cpu reports what processor time an iteration took, of servers and client together: that says more than the clock on a
// machine with other work.
func cpu(b *testing.B) func() {
	spent := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	begin := spent()
	return func() { b.ReportMetric(float64(spent()-begin)/float64(b.N)/1e6, "cpu-ms/op") }
}

// held returns how many bytes the servers have.
func (x *fixture) held() (n int) {
	for _, s := range x.servers {
		s.set(func(s *fakeServer) {
			for _, c := range s.chunks {
				n += len(c)
			}
		})
	}
	return n
}

func BenchmarkSequentialWrite(b *testing.B) {
	for _, policy := range benchPolicies {
		for _, size := range []int{16 << 10, 64 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", policy, size>>10), func(b *testing.B) {
				x := newCodedFixture(b, 6, policy, func(c *StoreConfig) { c.Memory = 64 << 20 })
				p := pattern(min(size, 1<<20), 1)
				b.SetBytes(int64(size))
				defer cpu(b)()
				for b.Loop() {
					f := x.file()
					for off := 0; off < size; off += len(p) {
						mustWrite(b, f, p, int64(off))
					}
					mustClose(b, f)
					if x.held() > 512<<20 {
						x.purge()
					}
				}
			})
		}
	}
}

func BenchmarkSequentialRead(b *testing.B) {
	const size = 64 << 20
	for _, policy := range benchPolicies {
		for _, lost := range []int{0, 1} {
			b.Run(fmt.Sprintf("%s/lost=%d", policy, lost), func(b *testing.B) {
				x := newCodedFixture(b, 6, policy, func(c *StoreConfig) { c.Memory, c.CacheBytes = 64<<20, 32<<20 })
				f := x.file()
				p := pattern(1<<20, 1)
				for off := 0; off < size; off += len(p) {
					mustWrite(b, f, p, int64(off))
				}
				mustClose(b, f)
				f = x.open(f.inode)
				for _, s := range x.servers[:lost] {
					x.meta.with(func(m *fakeMeta) { delete(m.servers, s.id) })
				}
				got := make([]byte, 128<<10)
				b.SetBytes(size)
				defer cpu(b)()
				for b.Loop() {
					x.store.reader.cache.clear()
					for off := 0; off < size; off += len(got) {
						if _, err := f.ReadAt(b.Context(), got, int64(off)); err != nil && !errors.Is(err, io.EOF) {
							b.Fatal(err)
						}
					}
				}
				mustClose(b, f)
			})
		}
	}
}

// BenchmarkRandomRead reads 4 KiB here and there, which a code spreads over servers the more the smaller its cells are.
func BenchmarkRandomRead(b *testing.B) {
	for _, policy := range benchPolicies {
		for _, cell := range []string{"wide", "packed"} {
			l, err := chunk.ParseLayout(policy)
			if err != nil {
				b.Fatal(err)
			}
			if !l.Coded() && cell == "packed" {
				continue
			}
			b.Run(policy+"/"+cell, func(b *testing.B) {
				x := newCodedFixture(b, 6, policy, func(c *StoreConfig) { c.CacheBytes = -1 })
				frame := 1 << 20
				if cell == "packed" {
					frame = 512 << 10
				}
				f := x.file()
				p := pattern(frame, 1)
				const size = 8 << 20
				for off := 0; off < size; off += frame {
					mustWrite(b, f, p, int64(off))
					f.flush()
				}
				mustClose(b, f)
				f = x.open(f.inode)
				got := make([]byte, 4<<10)
				b.SetBytes(int64(len(got)))
				i := 0
				defer cpu(b)()
				for b.Loop() {
					i++
					if _, err := f.ReadAt(b.Context(), got, int64(i*7919%(size/len(got))*len(got))); err != nil && !errors.Is(err, io.EOF) {
						b.Fatal(err)
					}
				}
				mustClose(b, f)
			})
		}
	}
}

func BenchmarkStripe(b *testing.B) {
	l, err := chunk.ParseLayout("ec=4+2")
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{4 << 10, 64 << 10, 900 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			p := newBuffers(64<<20, nil)
			buf := p.force(n)
			copy(*buf, pattern(n, 1))
			fr := &frame{file: &File{s: &Store{buffers: p}}, n: n, sums: chunk.Checksums(nil, *buf)}
			fr.keep(buf)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				s := newStripe(fr, cellFor(l, n))
				s.encode()
				s.release()
			}
		})
	}
}
