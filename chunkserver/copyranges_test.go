package chunkserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// fleet is several chunk servers of one cluster.
type fleet struct {
	t       *testing.T
	servers []*running
	infos   []*pb.ServerInfo
	clients []client
}

func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	m := newMeta(t)
	f := &fleet{t: t}
	for range n {
		s := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{m.srv.Address()}})
		s.awaitReady(t)
		f.servers = append(f.servers, s)
		f.infos = append(f.infos, &pb.ServerInfo{Id: uint32(s.store.identity().Server), Address: s.Address()})
		f.clients = append(f.clients, dial(t, s))
	}
	return f
}

// shardsOf is what the shards of a chunk hold.
func shardsOf(t *testing.T, l chunk.Layout, data []byte) [][]byte {
	t.Helper()
	out := make([][]byte, l.Width())
	if !l.Coded() {
		for i := range out {
			out[i] = data
		}
		return out
	}
	padded := make([]byte, l.Padded(len(data)))
	copy(padded, data)
	for i := range out {
		out[i] = make([]byte, len(padded)/l.Data)
	}
	l.Scatter(out[:l.Data], padded)
	if err := l.Encode(out); err != nil {
		t.Fatal(err)
	}
	return out
}

// put stores a chunk, shard i on server i, but for the shards that are lost.
func (f *fleet) put(id chunk.ID, l chunk.Layout, data []byte, lost ...int) *pb.ChunkInfo {
	f.t.Helper()
	info := &pb.ChunkInfo{Id: uint64(id), Length: uint64(l.Padded(len(data))), Layout: l.Proto(), Servers: make([]uint32, l.Width())}
	for i, shard := range shardsOf(f.t, l, data) {
		info.Servers[i] = f.infos[i].Id // of those that are lost, too: they fail when they are asked
		if slices.Contains(lost, i) {
			continue
		}
		w := f.clients[i].append(id.Stored(l, i))
		for len(shard) > 0 {
			n := min(len(shard), chunk.MaxFrame)
			w.send(shard[:n], nil)
			shard = shard[n:]
		}
		w.send(nil, func(h *pb.AppendHeader) { h.Durable, h.Seal = true, true })
		w.acked(w.length, w.length)
	}
	return info
}

// TestRanges makes chunks of all layouts out of random ranges of chunks of all layouts.
func TestRanges(t *testing.T) {
	f := newFleet(t, 6)
	narrow := chunk.Layout{Data: 4, Parity: 2, Cell: 1024}.WithMin(0)
	wide := chunk.Layout{Data: 2, Parity: 1, Cell: 96 << 10}.WithMin(0)
	data := map[uint64][]byte{}
	var sources []*pb.ChunkInfo
	for i, c := range []struct {
		layout chunk.Layout
		length int
		lost   []int
	}{
		{chunk.Copies(3), 3<<20 + 17, nil}, {chunk.Copies(2), 100, []int{0}}, {narrow, 3 << 20, nil}, {narrow, 300000, []int{0, 3}}, {wide, 2<<20 + 5, []int{1}}, {wide, 5 << 20, nil},
	} {
		id := chunk.ID(100 + i)
		data[uint64(id)] = random(c.length)
		sources = append(sources, f.put(id, c.layout, data[uint64(id)], c.lost...))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	next := chunk.ID(1000)
	for _, l := range []chunk.Layout{chunk.Copies(2), narrow, wide} {
		for _, longest := range []int{1 << 10, 60 << 10, 3 << 20} {
			t.Run(fmt.Sprintf("%v in cells of %d, ranges of up to %d", l, l.Cell, longest), func(t *testing.T) {
				order := &pb.CopyOrder{Servers: f.infos, Sources: sources, Layout: l.Proto()}
				var want []byte
				for len(order.Ranges) < 300 && len(want) < 8<<20 {
					i := rng.IntN(len(sources))
					from := data[sources[i].Id]
					n := 1 + rng.IntN(min(len(from), longest))
					at := rng.IntN(len(from) - n + 1)
					order.Ranges = append(order.Ranges, &pb.SourceRange{Source: uint32(i), From: uint32(at), To: uint32(at + n)})
					want = append(want, from[at:at+n]...)
				}
				next++
				for i, shard := range shardsOf(t, l, want) {
					order.Stored, order.Shard, order.Length = uint64(next.Stored(l, i)), uint32(i), uint64(len(shard))
					n, err := f.servers[i].makeCopy(t.Context(), order, new(atomic.Pointer[disk.Disk]))
					if err != nil || n != order.Length {
						t.Fatalf("shard %d: %d of %d bytes, %v", i, n, order.Length, err)
					}
					for off := 0; off < len(shard); off += chunk.MaxRead {
						f.clients[i].mustRead(chunk.ID(order.Stored), uint64(off), shard[off:min(len(shard), off+chunk.MaxRead)])
					}
					if n, err := f.servers[i].makeCopy(t.Context(), order, new(atomic.Pointer[disk.Disk])); err != nil || n != 0 {
						t.Errorf("an order given again: %d bytes, %v", n, err)
					}
				}
			})
		}
	}
}

// TestRangesRefused: what would make a shard that does not go with the others, or cannot be read, is refused.
func TestRangesRefused(t *testing.T) {
	f := newFleet(t, 3)
	data := random(5000)
	src := f.put(7, chunk.Copies(2), data, 1)
	code := chunk.Layout{Data: 2, Parity: 1, Cell: 512}.WithMin(0)
	order := func(change func(*pb.CopyOrder)) error {
		o := &pb.CopyOrder{Stored: uint64(chunk.ID(8).Stored(code, 0)), Servers: f.infos, Layout: code.Proto(), Length: 1024, Sources: []*pb.ChunkInfo{src},
			Ranges: []*pb.SourceRange{{From: 10, To: 1000}, {From: 2000, To: 3000}}}
		change(o)
		_, err := f.servers[0].makeCopy(t.Context(), o, new(atomic.Pointer[disk.Disk]))
		return err
	}
	for name, change := range map[string]func(*pb.CopyOrder){
		"a shard too short": func(o *pb.CopyOrder) { o.Length = 512 },
		"a shard too long":  func(o *pb.CopyOrder) { o.Length = 1536 },
		"no such source":    func(o *pb.CopyOrder) { o.Ranges[1].Source = 1 },
		"beyond the source": func(o *pb.CopyOrder) { o.Ranges[1].To = 5001 },
		"an empty range":    func(o *pb.CopyOrder) { o.Ranges[1].To = 2000 },
		"a range backwards": func(o *pb.CopyOrder) { o.Ranges[1].To = 1999 },
		"more than fits": func(o *pb.CopyOrder) {
			o.Sources[0] = &pb.ChunkInfo{Id: 7, Length: chunk.MaxLength, Layout: src.Layout, Servers: src.Servers}
			o.Ranges = append(o.Ranges, &pb.SourceRange{To: chunk.MaxLength})
		},
		"a damaged source":     func(o *pb.CopyOrder) { o.Sources[0] = &pb.ChunkInfo{Id: 7, Length: 5000, Layout: &pb.Layout{Data: 2}} },
		"too many ranges":      func(o *pb.CopyOrder) { o.Ranges = make([]*pb.SourceRange, maxRanges+1) },
		"another shard's name": func(o *pb.CopyOrder) { o.Shard = 1 },
	} {
		if err := order(change); !errors.Is(err, disk.ErrInvalid) && name != "a damaged source" || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := order(func(o *pb.CopyOrder) {
		o.Sources[0] = &pb.ChunkInfo{Id: 7, Length: 5000, Layout: src.Layout, Servers: []uint32{0, src.Servers[1]}}
	}); err == nil {
		t.Error("a shard was made of a source that nobody has")
	}
	if err := order(func(*pb.CopyOrder) {}); err != nil {
		t.Error(err)
	}
}
