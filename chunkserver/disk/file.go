package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FS is what the package needs of the file system that holds chunk files. Tests put faults behind it.
type FS interface {
	// Create makes a file that does not exist yet; fs.ErrExist where it does.
	Create(path string) (File, error)
	Open(path string) (File, error)
	Remove(path string) error
	// Rename puts a file in the place of what has the name, if anything has: there is no moment at which neither has it.
	Rename(from, to string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(path string) error
	Space(path string) (Space, error)
}

// File is an open chunk file. Its methods may be called by several goroutines at once.
type File interface {
	io.ReaderAt
	// WriteBuffers writes all buffers one after the other at off, or returns an error.
	WriteBuffers(bufs [][]byte, off int64) error
	// Sync makes contents and size durable.
	Sync() error
	// StartWriteback asks the kernel to begin writing a range to disk, without waiting for it and without promise.
	StartWriteback(off, n int64) error
	// DropCache has what the kernel remembers of a range forgotten, where that is on disk already; n of 0 is all that follows.
	DropCache(off, n int64) error
	Truncate(size int64) error
	Size() (int64, error)
	Close() error
}

// Space is the state of a file system, in bytes.
type Space struct {
	Capacity uint64
	Free     uint64 // what this process may still write
	// Filesystem names the file system. It is the same for all that lies on it, whichever process asks, and stays as it is as
	// long as the file system is mounted. Empty where it cannot be told.
	Filesystem string
}

// OS is the FS of the operating system.
var OS FS = osFS{}

type osFS struct{}

// mode of every file: chunks hold what users wrote, whoever may read it.
const fileMode = 0o600

func (osFS) Create(path string) (File, error) {
	return openFile(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
}

func (osFS) Open(path string) (File, error) {
	f, err := openFile(path, unix.O_RDWR)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) {
		return openFile(path, unix.O_RDONLY) // what a broken disk still lets one read is worth having
	}
	return f, err
}

func openFile(path string, flags int) (File, error) {
	// O_NONBLOCK: should the name be that of a FIFO, say so instead of waiting for its other end.
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	fd, err := retry(func() (int, error) { return unix.Open(path, flags, fileMode) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = unix.Close(fd)
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	return &osFile{fd: fd, path: path}, nil
}

func (osFS) Remove(path string) error { return os.Remove(path) }

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }

func (osFS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

func (osFS) Space(path string) (Space, error) {
	var st unix.Statfs_t
	if _, err := retry(func() (int, error) { return 0, unix.Statfs(path, &st) }); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return Space{Capacity: st.Blocks * uint64(st.Bsize), Free: st.Bavail * uint64(st.Bsize), Filesystem: filesystemOf(path)}, nil
}

// filesystemOf names a file system by the running kernel and the device number that it gave it. Both are the same in every
// container, and the kernel's id differs between machines that were cloned with everything that is on their disks. What
// shares a disk under several device numbers (subvolumes of btrfs, datasets of ZFS) counts as several file systems.
func filesystemOf(path string) string {
	var st unix.Stat_t
	if _, err := retry(func() (int, error) { return 0, unix.Stat(path, &st) }); err != nil || kernelID() == "" {
		return ""
	}
	return fmt.Sprintf("%s/%x", kernelID(), st.Dev)
}

// kernelID names the running kernel until it is booted again; empty where it cannot be told.
var kernelID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
})

// osFile is a bare descriptor: os.File would only add a lock and the poller, which regular files do not use.
type osFile struct {
	fd   int
	path string
}

func retry[T any](f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if err != unix.EINTR {
			return v, err
		}
	}
}

// maxBuffers is IOV_MAX of Linux.
const maxBuffers = 1024

func (f *osFile) WriteBuffers(bufs [][]byte, off int64) error {
	for len(bufs) > 0 {
		n, err := retry(func() (int, error) { return unix.Pwritev(f.fd, bufs[:min(len(bufs), maxBuffers)], off) })
		if err != nil {
			return f.wrap("write", err)
		}
		if n == 0 {
			return f.wrap("write", io.ErrShortWrite)
		}
		off += int64(n)
		bufs = consume(bufs, n)
	}
	return nil
}

// consume drops the first n bytes of the buffers. A write that is cut short is rare: only then is one resliced.
func consume(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) {
		n, err := retry(func() (int, error) { return unix.Pread(f.fd, p[total:], off+int64(total)) })
		if err != nil {
			return total, f.wrap("read", err)
		}
		if n == 0 {
			return total, io.EOF
		}
		total += n
	}
	return total, nil
}

func (f *osFile) Sync() error {
	_, err := retry(func() (int, error) { return 0, unix.Fdatasync(f.fd) })
	return f.wrap("fdatasync", err)
}

func (f *osFile) StartWriteback(off, n int64) error {
	return f.wrap("sync_file_range", unix.SyncFileRange(f.fd, off, n, unix.SYNC_FILE_RANGE_WRITE))
}

func (f *osFile) DropCache(off, n int64) error {
	return f.wrap("fadvise", unix.Fadvise(f.fd, off, n, unix.FADV_DONTNEED))
}

func (f *osFile) Truncate(size int64) error {
	_, err := retry(func() (int, error) { return 0, unix.Ftruncate(f.fd, size) })
	return f.wrap("truncate", err)
}

func (f *osFile) Size() (int64, error) {
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	return st.Size, f.wrap("stat", err)
}

func (f *osFile) Close() error { return f.wrap("close", unix.Close(f.fd)) }

func (f *osFile) wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: f.path, Err: err}
}

// shared is a File that is closed when its last user has let go of it.
type shared struct {
	File
	refs atomic.Int32
}

func share(f File) *shared {
	s := &shared{File: f}
	s.refs.Store(1)
	return s
}

func (s *shared) ref() *shared {
	s.refs.Add(1)
	return s
}

func (s *shared) unref() error {
	switch n := s.refs.Add(-1); {
	case n == 0:
		return s.File.Close()
	case n < 0:
		return fmt.Errorf("disk: a file was given back twice")
	}
	return nil
}
