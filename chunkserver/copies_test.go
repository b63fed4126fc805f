package chunkserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

var (
	copies2 = chunk.Copies(2)
	ec42    = chunk.Layout{Data: 4, Parity: 2, Cell: 4096}.WithMin(0)
)

// mustHold checks that a server has exactly these bytes under a stored id, whole on disk, and nothing beside it.
func mustHold(t *testing.T, s *running, stored chunk.ID, want []byte) {
	t.Helper()
	c := dial(t, s)
	for at := 0; at < len(want); at += chunk.MaxRead {
		c.mustRead(stored, uint64(at), want[at:min(at+chunk.MaxRead, len(want))])
	}
	if _, err := c.read(stored, uint64(len(want)), 1); err == nil {
		t.Fatal("it holds more than it should")
	}
	if err := s.store.find(stored).Verify(t.Context(), stored, nil); err != nil {
		t.Fatalf("what was copied is not whole: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(s.cfg.Dirs[0], "chunks", "*", "*.copy"))
	if err != nil || len(left) > 0 {
		t.Fatalf("copies were left behind: %v, %v", left, err)
	}
}

// TestCopyFromServer copies a chunk whose frames do not end where checksum blocks do from a real server over the network,
// and then once more.
func TestCopyFromServer(t *testing.T) {
	m, a := one(t)
	b := start(t, Config{Dirs: []string{t.TempDir()}, Meta: []string{m.srv.Address()}})
	b.awaitReady(t)
	data := random(3<<20 + 12345)
	w := dial(t, a).append(1)
	for at, n := 0, 0; at < len(data); at += n {
		n = min(70_001+at/2, chunk.MaxFrame, len(data)-at)
		w.send(data[at:at+n], nil)
	}
	w.send(nil, seal)
	w.acked(uint64(len(data)), 0)
	length := len(data) - 777 // the committed length: what follows belongs to nothing
	o := &pb.CopyOrder{
		Stored: 1, Layout: copies2.Proto(), Length: uint64(length),
		Source:  &pb.ChunkInfo{Id: 1, Length: uint64(length), Servers: []uint32{uint32(a.store.identity().Server), 0}, Layout: copies2.Proto()},
		Servers: []*pb.ServerInfo{{Id: uint32(a.store.identity().Server), Address: relay(t, a.Address())}},
	}
	if n := mustCopy(t, m, b, o); n != uint64(length) {
		t.Errorf("%d bytes of %d", n, length)
	}
	mustHold(t, b, 1, data[:length])
	if n := mustCopy(t, m, b, o); n != 0 {
		t.Errorf("%d bytes were copied again", n)
	}
	if got := b.copyRate.taken.Load(); got != uint64(length) {
		t.Errorf("the rate was charged %d bytes for %d", got, length)
	}
	if n := value(t, b.metrics.copies.WithLabelValues("made")); n != 1 {
		t.Errorf("%v copies were counted", n)
	}
	m.until(t, "the inventory", func() bool { return m.last.Disks[0].Chunks == 1 })
}

// TestSourceFails has one of two sources fail in the middle: the copy goes on at the same place with the other.
func TestSourceFails(t *testing.T) {
	const frames = 6
	for name, spoil := range map[string]func(*pb.ReadRequest, []byte) error{
		"error":       func(*pb.ReadRequest, []byte) error { return rpc.Error(rpc.ChunkCorrupt, "damaged") },
		"bad bytes":   func(_ *pb.ReadRequest, b []byte) error { b[len(b)/2] ^= 1; return nil },
		"goes silent": nil,
	} {
		t.Run(name, func(t *testing.T) {
			m, s := one(t)
			f := newSource(t)
			data := random(frames << 20)
			f.holdAll(9, copies2, data)
			var victim atomic.Uint32 // the server that is asked first
			f.set(func(r *pb.ReadRequest, b []byte) error {
				victim.CompareAndSwap(0, r.Server)
				if r.Server != victim.Load() || r.Offset < 2<<20 {
					return nil
				}
				if spoil == nil {
					return errors.New("the connection broke")
				}
				return spoil(r, b)
			})
			mustCopy(t, m, s, f.order(9, copies2, len(data), copies2, 0))
			mustHold(t, s, 9, data)
			bad, times := 0, map[uint64]int{}
			for _, r := range f.asked(0) {
				times[r.Offset]++
				if r.Server == victim.Load() {
					bad++
				}
			}
			for at, n := range times {
				if at < 2<<20 && n != 1 {
					t.Errorf("the bytes at %d were asked for %d times", at, n)
				}
			}
			if bad > 2+copyAhead+2 {
				t.Errorf("the bad source was asked %d times", bad)
			}
		})
	}
	t.Run("all", func(t *testing.T) {
		m, s := one(t)
		f := newSource(t)
		f.holdAll(9, copies2, random(2<<20))
		f.set(func(r *pb.ReadRequest, _ []byte) error {
			if r.Offset > 0 {
				return rpc.Error(rpc.ChunkCorrupt, "damaged here")
			}
			return nil
		})
		o := f.order(9, copies2, 2<<20, copies2, 0)
		m.order(t, s, &pb.HeartbeatReply{Copies: []*pb.CopyOrder{o}})
		if r := m.result(t, 9); !strings.Contains(r.Error, "damaged here") || !strings.Contains(r.Error, "chunk server 2") {
			t.Errorf("%v", r)
		}
		if s.store.find(9) != nil {
			t.Error("half a chunk is there")
		}
		f.set(nil)
		mustCopy(t, m, s, o)
	})
}

// TestRebuild makes each shard of a code from each choice of as many others as are needed.
func TestRebuild(t *testing.T) {
	m, s := one(t)
	f := newSource(t)
	id := chunk.ID(1)
	data := random(3*1024*1024 + 5)
	for shard := range ec42.Width() {
		for other := range ec42.Width() {
			if other == shard {
				continue
			}
			id++
			shards := f.holdAll(id, ec42, data)
			o := f.order(id, ec42, len(data), ec42, shard, shard, other)
			if n := mustCopy(t, m, s, o); n != uint64(len(shards[shard])) {
				t.Errorf("%d bytes", n)
			}
			mustHold(t, s, id.Stored(ec42, shard), shards[shard])
		}
	}
	f.asked(0)

	// A shard whose holder still lives is copied as it is.
	shards := f.holdAll(1, ec42, data)
	mustCopy(t, m, s, f.order(1, ec42, len(data), ec42, 2))
	mustHold(t, s, chunk.ID(1).Stored(ec42, 2), shards[2])
	for _, r := range f.asked(0) {
		if r.Server != 3 {
			t.Errorf("server %d was asked for a shard that server 3 has", r.Server)
		}
	}

	// It dies half-way, and so does one of the others.
	f.set(func(r *pb.ReadRequest, _ []byte) error {
		if r.Server == 3 && r.Offset >= 512<<10 || r.Server == 1 {
			return errors.New("the connection broke")
		}
		return nil
	})
	shards = f.holdAll(100, ec42, data)
	mustCopy(t, m, s, f.order(100, ec42, len(data), ec42, 2))
	mustHold(t, s, chunk.ID(100).Stored(ec42, 2), shards[2])

	o := f.order(101, ec42, len(data), ec42, 2, 2, 3)
	f.holdAll(101, ec42, data)
	m.order(t, s, &pb.HeartbeatReply{Copies: []*pb.CopyOrder{o}})
	if r := m.result(t, o.Stored); !strings.Contains(r.Error, "too few shards") {
		t.Errorf("three shards of four: %v", r)
	}
}

// TestConversion makes shards of one layout of a chunk that is stored in another.
func TestConversion(t *testing.T) {
	wide := chunk.Layout{Data: 3, Parity: 2, Cell: 128 << 10}.WithMin(0)
	packed := chunk.Layout{Data: 2, Parity: 1, Cell: chunk.PackedCell}.WithMin(0)
	m, s := one(t)
	f := newSource(t)
	id := chunk.ID(1)
	for _, c := range []struct {
		from, to chunk.Layout
		missing  []int
		length   int
	}{
		{from: copies2, to: ec42, length: 1234567},
		{from: copies2, to: ec42, length: 3},
		{from: copies2, to: wide, length: 5<<20 + 1, missing: []int{0}},
		{from: copies2, to: packed, length: 3<<20 + 511},
		{from: ec42, to: copies2, length: 2<<20 + 7},
		{from: ec42, to: copies2, length: 2<<20 + 7, missing: []int{0, 5}},
		{from: wide, to: copies2, length: 4 << 20, missing: []int{1, 2}},
		{from: packed, to: ec42, length: 1<<20 + 999, missing: []int{1}},
		{from: wide, to: packed, length: 1<<20 + 999, missing: []int{0, 1}},
		{from: ec42, to: wide, length: 2<<20 + 4095},
	} {
		id++
		data := random(c.length)
		f.holdAll(id, c.from, data)
		for shard, want := range encode(t, c.to, data) {
			if !c.to.Coded() && shard > 0 {
				break // under the same id
			}
			t.Run(fmt.Sprintf("%v %d to %v %d,%d bytes", c.from, c.from.Cell, c.to, shard, c.length), func(t *testing.T) {
				mustCopy(t, m, s, f.order(id, c.from, c.length, c.to, shard, c.missing...))
				mustHold(t, s, id.Stored(c.to, shard), want)
			})
		}
	}
}

// spoilFile changes a byte of a chunk's file, amid the first bytes stored.
func spoilFile(t *testing.T, s *running, id chunk.ID) {
	t.Helper()
	path := filepath.Join(s.cfg.Dirs[0], "chunks", fmt.Sprintf("%02x", uint8(id)), id.String()+".chunk")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestReplace makes chunks anew that are there already: damaged, or too short.
func TestReplace(t *testing.T) {
	m, s := one(t)
	f := newSource(t)
	c := dial(t, s)
	data := random(2 << 20)
	f.holdAll(1, copies2, data)
	f.holdAll(2, copies2, data)
	f.holdAll(3, copies2, data)
	o := f.order(1, copies2, len(data), copies2, 0)
	mustCopy(t, m, s, o)
	for range 2 {
		spoilFile(t, s, 1)
		if _, err := c.read(1, 0, chunk.MaxRead/2); rpc.Kind(err) != rpc.ChunkCorrupt {
			t.Fatalf("%v", err)
		}
		m.until(t, "a report", func() bool { return m.corrupt[1] })
		mustCopy(t, m, s, o)
		mustHold(t, s, 1, data)
		if h, ok := s.store.find(1).Held(1); !ok || h.Bad {
			t.Errorf("%+v", h)
		}
	}
	spoilFile(t, s, 1) // which nobody has noticed when the order comes
	if n := mustCopy(t, m, s, o); n == 0 {
		t.Error("a damaged chunk passed for a good one")
	}
	mustHold(t, s, 1, data)

	w := c.append(2)
	w.send(data[:1000], nil)
	w.acked(1000, 0)
	m.order(t, s, &pb.HeartbeatReply{Copies: []*pb.CopyOrder{f.order(2, copies2, len(data), copies2, 0)}})
	if r := m.result(t, 2); !strings.Contains(r.Error, "being written") {
		t.Errorf("copy over a chunk that is written: %v", r)
	}
	w.send(nil, seal)
	for !errors.Is(w.failure(), os.ErrClosed) { // until the stream has ended
		break
	}
	m.until(t, "the chunk is sealed", func() bool { h, _ := s.store.find(2).Held(2); return !h.Writing })
	mustCopy(t, m, s, f.order(2, copies2, len(data), copies2, 0))
	mustHold(t, s, 2, data)
}

// TestPatchwork makes shards anew of which no server has all any more, but each has something else: what is to be replaced, too.
func TestPatchwork(t *testing.T) {
	m, s := one(t)
	f := newSource(t)
	const block = chunk.ChecksumBlock
	for id, l := range map[chunk.ID]chunk.Layout{1: copies2, 2: ec42} {
		data := random(l.Data * 5 * block)
		shards := f.holdAll(id, l, data)
		o := f.order(id, l, len(data), l, 0)
		if l.Coded() {
			o = f.order(id, l, len(data), l, 0, 0) // its own server is not asked
		}
		mustCopy(t, m, s, o)
		stored := chunk.ID(o.Stored)
		path := pathOf(s, stored)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[4*block+1000] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f.set(func(r *pb.ReadRequest, payload []byte) error {
			at := uint64(r.Server-1) * block // where the server's copy is damaged; the last two of a code have one block
			if r.Server > 4 {
				at = 3 * block
			}
			if at >= r.Offset && at < r.Offset+uint64(r.Length) {
				payload[at-r.Offset] ^= 1
			}
			return nil
		})
		if n := mustCopy(t, m, s, o); n != uint64(len(shards[0])) {
			t.Errorf("%v: %d bytes were made", l, n)
		}
		mustHold(t, s, stored, shards[0])
		f.set(nil)
	}
}
