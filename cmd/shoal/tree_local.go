package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// localTree is the file system of this machine.
type localTree struct{}

func (localTree) Show(path string) string      { return path }
func (localTree) Join(dir, name string) string { return joinLocal(dir, name) }

func (localTree) Same(other tree) bool {
	_, ok := other.(localTree)
	return ok
}

func (localTree) Stat(_ context.Context, path string) (*entry, error)  { return statLocal(path, 0) }
func (localTree) Lstat(_ context.Context, path string) (*entry, error) { return lstatLocal(path) }

func lstatLocal(path string) (*entry, error) { return statLocal(path, unix.AT_SYMLINK_NOFOLLOW) }

func statLocal(path string, flags int) (*entry, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(unix.AT_FDCWD, path, &st, flags); err != nil {
		return nil, err
	}
	return &entry{
		Name: filepath.Base(path), Mode: st.Mode, Nlink: uint64(st.Nlink), UID: st.Uid, GID: st.Gid, Rdev: uint32(st.Rdev),
		Size: st.Size, Allocated: st.Blocks * 512,
		Atime: time.Unix(st.Atim.Unix()), Mtime: time.Unix(st.Mtim.Unix()), Ctime: time.Unix(st.Ctim.Unix()),
		ID: fileID{uint64(st.Dev), st.Ino},
	}, nil
}

func (localTree) ReadDir(ctx context.Context, path string) ([]*entry, error) {
	names, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	out := make([]*entry, 0, len(names))
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, err := lstatLocal(filepath.Join(path, n.Name()))
		if err == unix.ENOENT {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

func (localTree) Readlink(_ context.Context, path string) (string, error) { return os.Readlink(path) }

func (localTree) Open(_ context.Context, path string) (io.ReadCloser, error) { return os.Open(path) }

func (localTree) Create(_ context.Context, path string, perm uint32) (io.WriteCloser, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, os.FileMode(perm&0o777))
}

func (localTree) Mkdir(_ context.Context, path string, perm uint32) error {
	return unix.Mkdir(path, perm)
}

func (localTree) Symlink(_ context.Context, target, path string) error {
	return os.Symlink(target, path)
}

func (localTree) Mknod(_ context.Context, path string, mode, rdev uint32) error {
	return unix.Mknod(path, mode, int(rdev))
}

func (localTree) SetMetadata(_ context.Context, path string, m metadata) error {
	if !m.Symlink {
		if err := unix.Chmod(path, m.Perm); err != nil {
			return err
		}
	}
	at, err := unix.TimeToTimespec(m.Atime)
	if err != nil {
		return err
	}
	mt, err := unix.TimeToTimespec(m.Mtime)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, mt}, unix.AT_SYMLINK_NOFOLLOW)
}

func (localTree) Rename(_ context.Context, from, to string) error { return os.Rename(from, to) }
func (localTree) Remove(_ context.Context, path string) error     { return os.Remove(path) }
