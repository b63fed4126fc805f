package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"
	"golang.org/x/sys/unix"
)

// spareName is the file that becomes the next segment. raft-wal looks only at names that end in .wal.
const spareName = "next.zeros"

// zeroedFS makes the log's segments out of written zeros. An append then overwrites blocks that the file has already, so
// that syncing it is one flush of the disk: a segment that is merely allocated makes the file system write its journal, too,
// at every sync. `go test -run xxx -bench BenchmarkLog` measures it. The next segment is written ahead, in the background.
type zeroedFS struct {
	*walfs.FS
	dir string

	mu     sync.Mutex
	spare  int64 // size of the spare file; 0: there is none, or it is being written
	closed bool
	work   sync.WaitGroup
}

// newZeroedFS is for the one process that uses the directory. A spare that an earlier one left may be incomplete.
func newZeroedFS(dir string) (*zeroedFS, error) {
	z := &zeroedFS{FS: walfs.New(), dir: dir}
	if err := os.Remove(z.sparePath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove what a crash left: %w", err)
	}
	return z, nil
}

func (z *zeroedFS) sparePath() string { return filepath.Join(z.dir, spareName) }

// Create implements types.VFS.
func (z *zeroedFS) Create(dir, name string, size uint64) (types.WritableFile, error) {
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); err == nil {
		return nil, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	if !z.useSpare(path, int64(size)) {
		if err := writeZeros(path, int64(size)); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	z.prepare(int64(size))
	s := newSegmentFile(f, dir)
	s.fresh.Store(true)
	return s, nil
}

// OpenWriter implements types.VFS. What is found in the segment counts from now on, but a process that was killed may have
// synced neither that nor the segment's name.
func (z *zeroedFS) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	s := newSegmentFile(f, dir)
	s.fresh.Store(true)
	if err := s.Sync(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// useSpare gives the spare file, if there is one of that size, its name.
func (z *zeroedFS) useSpare(path string, size int64) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.spare == 0 || z.spare != size {
		return false
	}
	z.spare = 0
	return os.Rename(z.sparePath(), path) == nil
}

// prepare writes the next spare. When that fails, the next Create has to do it, and to say why it cannot.
func (z *zeroedFS) prepare(size int64) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.closed || z.spare != 0 || size == 0 {
		return
	}
	z.work.Go(func() {
		if writeZeros(z.sparePath(), size) != nil {
			return
		}
		z.mu.Lock()
		z.spare = size
		z.mu.Unlock()
	})
}

// close waits for the background.
func (z *zeroedFS) close() {
	z.mu.Lock()
	z.closed = true
	z.mu.Unlock()
	z.work.Wait()
}

// writeZeros makes a file of zeros that is on disk. The name is so only once the directory was synced.
func writeZeros(path string, size int64) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < size; {
		n, err := f.Write(zeros[:min(size-at, int64(len(zeros)))])
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return f.Sync()
}

// segmentFile is a segment that is written to. Sync makes data, size and, for a new file, its name durable.
type segmentFile struct {
	*os.File
	dir    string
	fresh  atomic.Bool
	direct *directWriter // nil: writes go through the page cache
}

func newSegmentFile(f *os.File, dir string) *segmentFile {
	return &segmentFile{File: f, dir: dir, direct: openDirect(f.Name())}
}

// WriteAt implements io.WriterAt. The kernel keeps what is written directly and what is read through the page cache the same.
func (s *segmentFile) WriteAt(b []byte, off int64) (int, error) {
	if s.direct != nil && s.direct.write(b, off, s.File) {
		return len(b), nil
	}
	return s.File.WriteAt(b, off) // an error of the disk is found by this, or by Sync
}

// Close implements io.Closer.
func (s *segmentFile) Close() error {
	err := s.File.Close()
	if s.direct != nil {
		err = errors.Join(s.direct.file.Close(), err)
	}
	return err
}

func (s *segmentFile) Sync() error {
	if err := unix.Fdatasync(int(s.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", s.Name(), err)
	}
	if s.fresh.Load() {
		if err := syncDir(s.dir); err != nil {
			return err
		}
		s.fresh.Store(false)
	}
	return nil
}
