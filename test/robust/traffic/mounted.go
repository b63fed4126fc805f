package traffic

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/shoalfs/shoalfs/test/fault/workload"
	"github.com/shoalfs/shoalfs/test/robust/history"
)

// mounted is a system that is mounted at a directory. Its calls are the kernel's, and cannot be given up.
type mounted string

func (m mounted) at(name string) string { return filepath.Join(string(m), name) }

func (m mounted) Directory(name string) (directory, error) {
	for _, dir := range []string{path.Dir(name), name} {
		if err := exists(os.Mkdir(m.at(dir), 0o755)); err != nil {
			return nil, err
		}
	}
	return mountedDirectory(m.at(name)), nil
}

func (m mounted) Open(name string, flag int) (workload.File, error) {
	return workload.Mounted(m).Open(name, flag)
}

func (m mounted) Chmod(_ context.Context, name string, mode uint32) error {
	return os.Chmod(m.at(name), os.FileMode(mode))
}

func (m mounted) Truncate(_ context.Context, name string, size int64) error {
	return os.Truncate(m.at(name), size)
}

func (m mounted) Stat(_ context.Context, name string) (history.Output, error) {
	info, err := os.Stat(m.at(name))
	if err != nil {
		return history.Output{}, err
	}
	return history.Output{Mode: uint32(info.Mode().Perm()), Size: info.Size()}, nil
}

func (m mounted) Cancels() bool { return false }
func (m mounted) Close() error  { return nil }

type mountedDirectory string

// Ops leaves out those for which the kernel looks at several names first, and may answer from that: of a rename that does not replace
// anything no such answer is wrong.
func (d mountedDirectory) Ops() []history.Op {
	return []history.Op{history.Create, history.Mkdir, history.Unlink, history.Rmdir, history.NoReplace}
}

func (d mountedDirectory) at(name string) string { return filepath.Join(string(d), name) }

// known is what the kernel knows of an open file without asking anybody: inode and type, which never change.
func known(fd int) (*unix.Statx_t, error) {
	st := new(unix.Statx_t)
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO|unix.STATX_TYPE, st)
	return st, err
}

func (d mountedDirectory) Create(_ context.Context, name string) (uint64, error) {
	f, err := os.OpenFile(d.at(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	st, err := known(int(f.Fd()))
	if err != nil {
		_ = f.Close() // that error is the first
		return 0, err
	}
	return st.Ino, f.Close()
}

func (d mountedDirectory) Mkdir(_ context.Context, name string) (uint64, error) {
	return 0, os.Mkdir(d.at(name), 0o755)
}

func (d mountedDirectory) Unlink(_ context.Context, name string) error {
	return unix.Unlink(d.at(name))
}
func (d mountedDirectory) Rmdir(_ context.Context, name string) error { return unix.Rmdir(d.at(name)) }

func (d mountedDirectory) Rename(_ context.Context, _ history.Op, from, to string) error {
	return unix.Renameat2(unix.AT_FDCWD, d.at(from), unix.AT_FDCWD, d.at(to), unix.RENAME_NOREPLACE)
}

func (d mountedDirectory) Link(context.Context, uint64, string) error {
	return fmt.Errorf("link: %w", unix.ENOSYS)
}

func (d mountedDirectory) Lookup(_ context.Context, name string) (found, error) {
	fd, err := unix.Open(d.at(name), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	st, err := known(fd)
	if err != nil {
		_ = unix.Close(fd) // that error is the first
		return nil, err
	}
	return &mountedFound{fd, st}, nil
}

// List asks the kernel once, which has room for all names: what it would add when it is asked for more, after the end, is from
// another moment.
func (d mountedDirectory) List(context.Context) (names []string, err error) {
	f, err := os.Open(string(d))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	b := make([]byte, 32<<10)
	n, err := unix.ReadDirent(int(f.Fd()), b)
	if err != nil {
		return nil, err
	}
	_, _, names = unix.ParseDirent(b[:n], -1, nil)
	slices.Sort(names)
	return names, nil
}

type mountedFound struct {
	fd int
	st *unix.Statx_t
}

func (f *mountedFound) Inode() uint64 { return f.st.Ino }
func (f *mountedFound) Dir() bool     { return f.st.Mode&unix.S_IFMT == unix.S_IFDIR }
func (f *mountedFound) Close()        { _ = unix.Close(f.fd) } // it was not written to

func (f *mountedFound) Links(context.Context) (uint32, error) {
	var st unix.Stat_t
	err := unix.Fstat(f.fd, &st)
	return uint32(st.Nlink), err
}
