package chunkserver

import (
	"context"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// cpu is the CPU time of the process so far, client and server, seconds.
func cpu() float64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// both runs a benchmark over the network and within the process.
func both(b *testing.B, f func(*testing.B, rpc.Conn)) {
	m := newMeta(b)
	s := start(b, Config{Dirs: []string{b.TempDir()}, Meta: []string{m.srv.Address()}})
	s.awaitReady(b)
	b.Run("network", func(b *testing.B) {
		conn, err := rpc.Dial(s.Address())
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		f(b, conn)
	})
	b.Run("local", func(b *testing.B) {
		conn, err := s.pool.Get(s.Address())
		if err != nil {
			b.Fatal(err)
		}
		f(b, conn)
	})
}

var nextChunk uint64

// BenchmarkAppend streams frames of 1 MiB, eight of them unacknowledged.
func BenchmarkAppend(b *testing.B) {
	both(b, func(b *testing.B, conn rpc.Conn) {
		p := random(chunk.MaxFrame)
		frame := mem.BufferSlice{mem.SliceBuffer(p)}
		sums := chunk.Checksums(nil, p)
		b.SetBytes(chunk.MaxFrame)
		b.ReportAllocs()
		b.ResetTimer()
		before := cpu()
		for left := b.N; left > 0; {
			n := min(left, chunk.MaxLength/chunk.MaxFrame)
			left -= n
			nextChunk++
			a, err := rpc.OpenAppend(context.Background(), conn)
			if err != nil {
				b.Fatal(err)
			}
			var acked uint64
			for i := range n {
				h := &pb.AppendHeader{Chunk: nextChunk, Offset: uint64(i) * chunk.MaxFrame, Checksums: sums, Seal: i == n-1}
				if i == 0 {
					h.Cluster, h.Server = testCluster, 5
				}
				if err := a.Send(h, frame); err != nil {
					_, err = a.Recv()
					b.Fatal(err)
				}
				for h.Offset+chunk.MaxFrame-acked > 8*chunk.MaxFrame || h.Seal && acked < uint64(n)*chunk.MaxFrame {
					r, err := a.Recv()
					if err != nil {
						b.Fatal(err)
					}
					acked = r.Length
				}
			}
			_ = a.CloseSend()
			_, _ = a.Recv() // the end of the stream
		}
		b.ReportMetric((cpu()-before)*1024/float64(b.N), "cpu-s/GiB")
	})
}

// BenchmarkRead4K reads 4 KiB at random places of a cached chunk.
func BenchmarkRead4K(b *testing.B) {
	both(b, func(b *testing.B, conn rpc.Conn) {
		nextChunk++
		a, err := rpc.OpenAppend(context.Background(), conn)
		if err != nil {
			b.Fatal(err)
		}
		p := random(chunk.MaxFrame)
		h := &pb.AppendHeader{Chunk: nextChunk, Checksums: chunk.Checksums(nil, p), Seal: true, Cluster: testCluster, Server: 5}
		if err := a.Send(h, mem.BufferSlice{mem.SliceBuffer(p)}); err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = a.Recv()
		}
		b.SetBytes(4096)
		b.ReportAllocs()
		b.ResetTimer()
		before := cpu()
		for range b.N {
			req := &pb.ReadRequest{Chunk: nextChunk, Offset: uint64(rand.IntN(256)) * 4096, Length: 4096, Cluster: testCluster, Server: 5}
			_, got, err := rpc.ReadChunk(context.Background(), conn, req)
			if err != nil {
				b.Fatal(err)
			}
			got.Free()
		}
		b.ReportMetric((cpu()-before)*1e6/float64(b.N), "cpu-us/op")
	})
}
