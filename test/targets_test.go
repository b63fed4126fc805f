package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/client"
	"github.com/shoalfs/shoalfs/internal/cluster"
)

// target is a file system under test.
type target interface {
	OpenFile(name string, flag int, perm fs.FileMode) (targetFile, error)
	Mkdir(name string, perm fs.FileMode) error
	Remove(name string) error
	Rename(old, name string) error
	Link(old, name string) error
	Truncate(name string, size int64) error
	Lstat(name string) (fs.FileInfo, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	links(fs.FileInfo) int
	remount(t *testing.T) // every file is closed
}

type targetFile interface {
	io.ReaderAt
	io.WriterAt
	io.Writer
	io.Closer
	Sync() error
	Truncate(size int64) error
	Stat() (fs.FileInfo, error)
}

// embeddedCluster starts a cluster in this process.
func embeddedCluster(t *testing.T) string {
	t.Helper()
	c, err := cluster.New(cluster.Config{Dir: t.TempDir(), Metaservers: 1, Chunkservers: 3, Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close the cluster: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return c.Address()
}

func dialCluster(t *testing.T, address string) *client.FS {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	f, err := client.Dial(ctx, address, client.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// sdkTarget is the SDK's path API.
type sdkTarget struct {
	ctx     context.Context
	address string
	fs      *client.FS
}

func newSDKTarget(t *testing.T) *sdkTarget {
	s := &sdkTarget{ctx: t.Context(), address: embeddedCluster(t)}
	s.fs = dialCluster(t, s.address)
	t.Cleanup(func() {
		if err := s.fs.Close(); err != nil {
			t.Errorf("close the client: %v", err)
		}
	})
	return s
}

func (s *sdkTarget) OpenFile(name string, flag int, perm fs.FileMode) (targetFile, error) {
	f, err := s.fs.OpenFile(s.ctx, name, flag, perm)
	if err != nil {
		return nil, err // and no typed nil
	}
	return f, nil
}
func (s *sdkTarget) Mkdir(name string, perm fs.FileMode) error { return s.fs.Mkdir(s.ctx, name, perm) }
func (s *sdkTarget) Remove(name string) error                  { return s.fs.Remove(s.ctx, name) }
func (s *sdkTarget) Rename(old, name string) error             { return s.fs.Rename(s.ctx, old, name) }
func (s *sdkTarget) Link(old, name string) error               { return s.fs.Link(s.ctx, old, name) }
func (s *sdkTarget) Truncate(name string, size int64) error    { return s.fs.Truncate(s.ctx, name, size) }
func (s *sdkTarget) Lstat(name string) (fs.FileInfo, error)    { return s.fs.Lstat(s.ctx, name) }
func (s *sdkTarget) ReadDir(name string) ([]fs.DirEntry, error) {
	return s.fs.ReadDir(s.ctx, name)
}
func (s *sdkTarget) links(i fs.FileInfo) int { return int(i.Sys().(*client.Attr).Nlink) }

func (s *sdkTarget) remount(t *testing.T) {
	if err := s.fs.Close(); err != nil {
		t.Fatalf("close the client: %v", err)
	}
	s.fs = dialCluster(t, s.address)
}

// mountTarget is a mount. It and its cluster are processes of their own: while a process unmaps a part of a file, which waits
// until what it wrote there is stored, it can do nothing that takes memory, such as storing it.
type mountTarget struct {
	dir           string
	cluster, main *process
}

func newMountTarget(t *testing.T) *mountTarget {
	dir, address := t.TempDir(), freeAddresses(t, 1)[0]
	m := &mountTarget{dir: filepath.Join(dir, "mnt")}
	if err := os.Mkdir(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	log := func(name string) string { return filepath.Join(dir, name+".log") }
	m.cluster = &process{t: t, name: "up", log: log("up"), args: []string{"up", "--data", filepath.Join(dir, "data"), "--listen", address, "--http", ""}}
	m.main = &process{t: t, name: "mount", log: log("mount"), args: []string{"mount", address, m.dir}}
	t.Cleanup(func() { // whatever of them runs
		for _, p := range []*process{m.main, m.cluster} {
			p.end(syscall.SIGTERM)
		}
	})
	m.cluster.start()
	m.main.start()
	return m
}

func (m *mountTarget) remount(*testing.T) {
	m.main.end(syscall.SIGTERM)
	m.main.start()
}

func (m *mountTarget) OpenFile(name string, flag int, perm fs.FileMode) (targetFile, error) {
	f, err := os.OpenFile(m.dir+name, flag, perm)
	if err != nil {
		return nil, err // and no typed nil
	}
	return f, nil
}
func (m *mountTarget) Mkdir(name string, perm fs.FileMode) error  { return os.Mkdir(m.dir+name, perm) }
func (m *mountTarget) Remove(name string) error                   { return os.Remove(m.dir + name) }
func (m *mountTarget) Rename(old, name string) error              { return os.Rename(m.dir+old, m.dir+name) }
func (m *mountTarget) Link(old, name string) error                { return os.Link(m.dir+old, m.dir+name) }
func (m *mountTarget) Truncate(name string, size int64) error     { return os.Truncate(m.dir+name, size) }
func (m *mountTarget) Lstat(name string) (fs.FileInfo, error)     { return os.Lstat(m.dir + name) }
func (m *mountTarget) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(m.dir + name) }
func (m *mountTarget) links(i fs.FileInfo) int                    { return int(i.Sys().(*syscall.Stat_t).Nlink) }

// fileMapping is a shared mapping of a part of a file. It is touched inside of system calls only: a page fault outside of
// one stops a thread where Go's scheduler does not see it.
type fileMapping struct {
	mem  []byte // from the start of a page on
	part []byte // what was asked for
	pipe [2]int
}

func mapRange(f *os.File, off int64, length int) (*fileMapping, error) {
	start := off &^ int64(os.Getpagesize()-1)
	skip := int(off - start)
	mem, err := unix.Mmap(int(f.Fd()), start, skip+length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap %s: %w", filepath.Base(f.Name()), err)
	}
	m := &fileMapping{mem: mem, part: mem[skip : skip+length]}
	if err := unix.Pipe2(m.pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, errors.Join(err, unix.Munmap(mem))
	}
	return m, nil
}

// transfer moves bytes through the pipe, no more at once than it holds.
func (m *fileMapping) transfer(to, from []byte) error {
	for len(from) > 0 {
		n, err := unix.Write(m.pipe[1], from[:min(len(from), 4096)])
		if err != nil {
			return err
		}
		for moved := 0; moved < n; {
			k, err := unix.Read(m.pipe[0], to[moved:n])
			if err != nil {
				return err
			}
			moved += k
		}
		to, from = to[n:], from[n:]
	}
	return nil
}

func (m *fileMapping) write(p []byte) error { return m.transfer(m.part, p) }
func (m *fileMapping) read(p []byte) error  { return m.transfer(p, m.part) }

func (m *fileMapping) close(sync bool) error {
	var err error
	if sync {
		err = unix.Msync(m.mem, unix.MS_SYNC)
	}
	return errors.Join(err, unix.Munmap(m.mem), unix.Close(m.pipe[0]), unix.Close(m.pipe[1]))
}
