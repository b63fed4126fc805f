package chunkserver

import (
	"context"
	"errors"
	"sync"
	"testing"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	"github.com/shoalfs/shoalfs/internal/rpc"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// twoDisks is a server of two disks, of which the first hangs when it is told to.
func twoDisks(t *testing.T) (*fakeMeta, *running, *hungFS) {
	t.Helper()
	m := newMeta(t)
	a, b := t.TempDir(), t.TempDir()
	room := &brokenFS{FS: disk.OS, free: map[string]uint64{a: 300 << 30, b: 200 << 30}} // so that the first is taken while it works
	fs := &hungFS{FS: room, dir: a}
	s := start(t, Config{Dirs: []string{a, b}, Meta: []string{m.srv.Address()}, ScrubRate: -1, fs: fs})
	t.Cleanup(fs.goOn) // before the server is closed
	s.awaitReady(t)
	return m, s, fs
}

// keep writes a chunk to a disk.
func keep(t *testing.T, d *disk.Disk, id chunk.ID, data []byte) {
	t.Helper()
	w, err := d.Create(id)
	if err != nil {
		t.Fatal(err)
	}
	for b := data; len(b) > 0; {
		n := min(len(b), chunk.MaxFrame)
		if err := w.Append(w.Length(), chunk.Checksums(nil, b[:n]), mem.BufferSlice{mem.SliceBuffer(b[:n])}); err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
}

// TestHungDiskDeletions: what one disk is to delete does not wait for another one, nor for a copy that is made there.
func TestHungDiskDeletions(t *testing.T) {
	m, s, fs := twoDisks(t)
	for id := range chunk.ID(8) {
		keep(t, s.store.disks[id%2], id, random(1000)) // even ones where it will hang
	}
	f := newSource(t)
	data := random(1000)
	f.holdAll(20, copies2, data)
	fs.hang()
	m.order(t, s, &pb.HeartbeatReply{Copies: []*pb.CopyOrder{f.order(20, copies2, len(data), copies2, 0)}})
	m.until(t, "the copy runs", func() bool { _, n := s.copies.count(); return n == 1 })
	m.order(t, s, &pb.HeartbeatReply{Delete: []uint64{20, 2, 1, 77}})
	m.until(t, "deletions", func() bool { return m.deleted[1] > 0 && m.deleted[77] > 0 })
	m.order(t, s, &pb.HeartbeatReply{Delete: []uint64{20, 2, 4, 3}})
	m.until(t, "more of them", func() bool { return m.deleted[3] > 0 })
	m.mu.Lock()
	if m.deleted[2]+m.deleted[4]+m.deleted[20] > 0 {
		t.Errorf("%v", m.deleted)
	}
	m.mu.Unlock()
	fs.goOn()
	m.until(t, "the others", func() bool { return m.deleted[2] > 0 && m.deleted[4] > 0 && m.deleted[20] > 0 })
	for _, id := range []chunk.ID{1, 2, 3, 4, 20} {
		if s.store.find(id) != nil {
			t.Errorf("chunk %v is still there", id)
		}
	}
}

// TestDeleteFromSeveralDisks: a chunk that two disks have is gone when it is gone from both.
func TestDeleteFromSeveralDisks(t *testing.T) {
	m, s, fs := twoDisks(t)
	for _, d := range s.store.disks {
		keep(t, d, 1, random(1000))
	}
	fs.hang()
	m.order(t, s, &pb.HeartbeatReply{Delete: []uint64{1, 77}})
	m.until(t, "a deletion", func() bool { return m.deleted[77] > 0 })
	m.mu.Lock()
	if m.deleted[1] > 0 {
		t.Error("it is gone while a disk hangs that has it")
	}
	m.mu.Unlock()
	fs.goOn()
	m.until(t, "the deletion", func() bool { return m.deleted[1] > 0 })
	if s.store.find(1) != nil {
		t.Error("it is still there")
	}
}

// TestHungDiskReads: as many reads as may wait for one disk keep none from another.
func TestHungDiskReads(t *testing.T) {
	_, s, fs := twoDisks(t)
	data := random(10_000)
	keep(t, s.store.disks[0], 1, data)
	keep(t, s.store.disks[1], 2, data)
	c := dial(t, s)
	c.mustRead(1, 0, data)
	fs.hang()
	var reads sync.WaitGroup
	for range maxReading + 5 {
		reads.Go(func() {
			if got, err := c.read(1, 0, len(data)); err != nil || len(got) != len(data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	awaitTrue(t, "reads that hang", func() bool { return len(s.shares[s.store.disks[0]].reading) == maxReading })
	c.mustRead(2, 0, data)
	fs.goOn()
	reads.Wait()
}

// TestHungDiskAppends: what waits for one disk, however much, keeps no frame from another.
func TestHungDiskAppends(t *testing.T) {
	_, s, _ := twoDisks(t)
	const all = maxQueued / 2
	queued := s.shares[s.store.disks[0]].queued
	if !queued.TryAcquire(all) {
		t.Fatal("a disk's share is not what it should be")
	}
	defer queued.Release(all)
	for i, d := range s.store.disks {
		w, err := d.Create(chunk.ID(i + 1))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		if i == 0 {
			cancel() // or it would wait
		}
		a := &appender{s: s.Server, stream: idleStream{ctx: ctx}, placed: make(chan struct{}), w: w}
		close(a.placed)
		for _, reserve := range []func(*incoming) error{a.reserveFirst, a.reserve} {
			in := incoming{payload: mem.BufferSlice{mem.SliceBuffer("abc")}}
			if err := reserve(&in); (err != nil) != (i == 0) {
				t.Errorf("disk %d: %v", i, err)
			}
			in.free()
		}
		cancel()
		if err := w.Finish(); err != nil {
			t.Error(err)
		}
	}
}

// idleStream brings nothing.
type idleStream struct {
	rpc.AppendStream
	ctx context.Context
}

func (s idleStream) Context() context.Context { return s.ctx }

// TestHungDiskCopies: copies that wait for a disk that hangs leave their places to others.
func TestHungDiskCopies(t *testing.T) {
	m, s, fs := twoDisks(t)
	f := newSource(t)
	data := random(1000)
	var orders []*pb.CopyOrder
	for id := range chunk.ID(copiesAtOnce + 2) {
		f.holdAll(id+1, copies2, data)
		orders = append(orders, f.order(id+1, copies2, len(data), copies2, 0))
	}
	keep(t, s.store.disks[0], copiesAtOnce+2, data) // whether it is good nobody can tell while the disk hangs
	fs.hang()
	m.order(t, s, &pb.HeartbeatReply{Copies: orders[:copiesAtOnce]})
	m.until(t, "copies hang", func() bool { _, n := s.copies.count(); return n == copiesAtOnce })
	m.order(t, s, &pb.HeartbeatReply{Copies: orders[copiesAtOnce:]})
	if r := m.result(t, copiesAtOnce+1); r.Error != "" {
		t.Errorf("%v", r)
	}
	if r := m.result(t, copiesAtOnce+2); r.Error == "" {
		t.Errorf("%v", r)
	}
	if s.store.find(copiesAtOnce+1) != s.store.disks[1] {
		t.Error("it is on the disk that hangs")
	}
	fs.goOn()
	for _, o := range orders[:copiesAtOnce] {
		if r := m.result(t, o.Stored); r.Error != "" {
			t.Errorf("%v", r)
		}
	}
}

// TestOneWriter: while a chunk is being made on a disk that hangs, it is not made on another.
func TestOneWriter(t *testing.T) {
	_, s, fs := twoDisks(t)
	a := s.store.disks[0]
	fs.hang()
	awaitTrue(t, "the disk hangs", a.Stalled) // from now on it is not the first choice
	first := make(chan error, 1)
	s.store.mu.Lock()
	s.store.making[1] = true // as of a stream that chose the first disk before
	s.store.mu.Unlock()
	go func() {
		w, err := a.Create(1)
		if err == nil {
			err = w.Finish()
		}
		first <- err
	}()
	if w, err := s.store.create(1); !errors.Is(err, disk.ErrExists) {
		t.Errorf("a second writer: %v, %v", w, err)
	}
	fs.goOn()
	if err := <-first; err != nil {
		t.Error(err)
	}
}
