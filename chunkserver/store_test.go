package chunkserver

import (
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"google.golang.org/grpc/mem"

	"github.com/shoalfs/shoalfs/chunkserver/disk"
	"github.com/shoalfs/shoalfs/internal/chunk"
)

// brokenFS fails with EIO for one directory once it is broken, and tells how much is free.
type brokenFS struct {
	disk.FS
	dir    string
	broken atomic.Bool
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
	if done, err := s.remove([]chunk.ID{1, 2, 3}); err != nil || len(done) != 3 || len(s.list()) != 0 {
		t.Errorf("%v, %v", done, err)
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
