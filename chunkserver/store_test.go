package chunkserver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
	pb "github.com/shoalfs/shoalfs/proto/shoalpb"
)

// brokenFS fails with EIO for one directory once it is broken, and tells how much is free.
type brokenFS struct {
	disk.FS
	dir    string
	broken atomic.Bool
	keeps  bool // it removes nothing either
	free   map[string]uint64
}

func (f *brokenFS) fault(path string) error {
	if f.broken.Load() && strings.HasPrefix(path, f.dir) {
		return &os.PathError{Op: "access", Path: path, Err: syscall.EIO}
	}
	return nil
}

func (f *brokenFS) Space(path string) (disk.Space, error) {
	return disk.Space{Capacity: 1 << 40, Free: f.free[path]}, f.fault(path)
}

func (f *brokenFS) Create(path string) (disk.File, error) {
	if err := f.fault(path); err != nil {
		return nil, err
	}
	return f.FS.Create(path)
}

func (f *brokenFS) Remove(path string) error {
	if err := f.fault(path); err != nil && f.keeps {
		return err
	}
	return f.FS.Remove(path)
}

// TestCopyLeavesBrokenDisk makes a chunk anew whose disk is damaged and fails: it goes to the other one, and the old file does
// not get in its way, not even after a restart.
func TestCopyLeavesBrokenDisk(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	fs := &brokenFS{FS: disk.OS, dir: a, keeps: true, free: map[string]uint64{a: 300 << 30, b: 200 << 30}}
	m := newMeta(t)
	cfg := Config{Dirs: []string{a, b}, Meta: []string{m.srv.Address()}, fs: fs, ScrubRate: -1}
	s := start(t, cfg)
	s.awaitReady(t)
	f := newSource(t)
	data := random(1 << 20)
	f.holdAll(1, copies2, data)
	o := f.order(1, copies2, len(data), copies2, 0)
	mustCopy(t, m, s, o)
	if s.store.find(1).Path() != a {
		t.Fatal("it is not where most space is")
	}
	spoilFile(t, s, 1)
	fs.broken.Store(true)
	m.order(t, s, &pb.HeartbeatReply{Check: []uint64{1}})
	m.until(t, "a report", func() bool { return m.corrupt[1] })
	mustCopy(t, m, s, o)
	whole := func() {
		t.Helper()
		dial(t, s).mustRead(1, 0, data)
		if l := s.store.list(); s.store.find(1).Path() != b || len(l) != 1 || l[0].Bad || !s.store.good(1) {
			t.Errorf("%v", l)
		}
	}
	whole()
	s.halt(t)
	m.update(func() { clear(m.corrupt) })
	fs.broken.Store(false)
	s = start(t, cfg)
	s.awaitReady(t)
	m.order(t, s, &pb.HeartbeatReply{ScrubPass: 1})
	m.until(t, "a scrub finds the old file", func() bool { return m.last.Scrub.GetFinished() && m.last.Scrub.Found == 1 })
	whole()
	m.mu.Lock()
	if m.corrupt[1] {
		t.Error("what was made anew was reported")
	}
	m.mu.Unlock()
	m.order(t, s, &pb.HeartbeatReply{Delete: []uint64{1}})
	m.until(t, "the deletion", func() bool { return m.deleted[1] == 1 })
	if s.store.find(1) != nil {
		t.Error("it is still there")
	}
}

// TestCopyOnFullDisk: the reserve is kept, and nothing stays behind.
func TestCopyOnFullDisk(t *testing.T) {
	a := t.TempDir()
	fs := &brokenFS{FS: disk.OS, dir: a, free: map[string]uint64{a: 3 << 20}}
	m := newMeta(t)
	s := start(t, Config{Dirs: []string{a}, Meta: []string{m.srv.Address()}, fs: fs})
	s.awaitReady(t)
	f := newSource(t)
	for id, n := range map[chunk.ID]int{1: 2 << 20, 2: 3 << 20} {
		data := random(n)
		f.holdAll(id, copies2, data)
		o := f.order(id, copies2, n, copies2, 0)
		m.order(t, s, &pb.HeartbeatReply{Copies: []*pb.CopyOrder{o}})
		r := m.result(t, o.Stored)
		if full := strings.Contains(r.Error, "full"); full != (id == 2) || (s.store.find(id) == nil) != full {
			t.Errorf("%v", r)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(a, "chunks", "*", "*.copy")); len(left) > 0 {
		t.Errorf("%v", left)
	}
}

func TestSeveralDisks(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	fs := &brokenFS{FS: disk.OS, dir: a, free: map[string]uint64{a: 300 << 30, b: 200 << 30}}
	opts := disk.Options{FS: fs, Reserve: 1}
	opts.Logger = discard
	s, err := openStore([]string{a, b}, opts)
	if err != nil {
		t.Fatal(err)
	}
	id := disk.Identity{UUID: s.uuid, Server: 3}
	copy(id.Cluster[:], testCluster)
	if err := s.setIdentity(id); err != nil {
		t.Fatal(err)
	}
	write := func(id chunk.ID) *disk.Disk {
		t.Helper()
		w, err := s.create(id)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Append(0, chunk.Checksums(nil, []byte("abc")), mem.BufferSlice{mem.SliceBuffer("abc")}); err != nil {
			t.Fatal(err)
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		return s.find(id)
	}
	if d := write(1); d.Path() != a {
		t.Errorf("the first chunk went to %s, which has less room", d.Path())
	}
	if _, err := s.create(1); !errors.Is(err, disk.ErrExists) {
		t.Errorf("the same chunk again: %v", err)
	}
	fs.broken.Store(true)
	if _, err := s.create(2); err == nil {
		t.Error("a broken disk takes a chunk")
	}
	if d := write(2); d.Path() != b {
		t.Errorf("a chunk went to the broken disk")
	}
	infos := s.infos()
	if infos[0].Error == "" || infos[0].Free != 0 || infos[1].Error != "" || infos[1].Chunks != 1 || s.working() != 1 {
		t.Errorf("%v", infos)
	}
	for _, d := range s.disks {
		if done, err := remove(d, []chunk.ID{1, 2, 3}); err != nil || len(done) != 3 {
			t.Errorf("%v, %v", done, err)
		}
	}
	if len(s.list()) != 0 {
		t.Error("something is left")
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}

	s, err = openStore([]string{a, b}, opts) // the disk is broken from the start
	if err != nil {
		t.Fatal(err)
	}
	if infos := s.infos(); infos[0].Error == "" || infos[0].Path != a || infos[1].Error != "" {
		t.Errorf("%v", infos)
	}
	if s.uuid != id.UUID || s.identity() != id {
		t.Errorf("it is %v now", s.identity())
	}
	if d := write(4); d.Path() != b {
		t.Errorf("a chunk went to the broken disk")
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}

	fs.broken.Store(false)
	fresh := t.TempDir()
	fs.free[fresh] = 400 << 30
	s, err = openStore([]string{a, b, fresh}, opts) // a disk is added
	if err != nil {
		t.Fatal(err)
	}
	if d := write(5); d.Path() != fresh || d.Identity() != id {
		t.Errorf("%s, %v", d.Path(), d.Identity())
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	fs.broken.Store(true)
	if _, err := openStore([]string{a}, opts); !errors.Is(err, syscall.EIO) {
		t.Errorf("the only disk is broken: %v", err)
	}
}
